
// What a GGML block means, as in the Rust code of format/ggml: sixteen values from 16 * part on are scale * q[i] + offset. Each
// format exists only in the texts that use it, where its block is declared. ALIGN is what every field of a block is a multiple of
// when the first block is.

#ifdef USES_Q4_0
struct Q4_0 {
    typedef BlockQ4_0 Block;
    enum { VALUES = 32, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint w = 0; w < 4; w++) bytes_to_floats<8>((load_word<2>(b.qs + 4 * w) >> (4 * part)) & 0x0f0f0f0fu, q + 4 * w);
        scale = float(b.d);
    }
};
#endif

#ifdef USES_Q4_1
struct Q4_1 {
    typedef BlockQ4_1 Block;
    enum { VALUES = 32, ALIGN = 4, OFFSET = 1 };
    static void decode(const Block& b, uint part, float* q, float& scale, float& offset) {
        for (uint w = 0; w < 4; w++) bytes_to_floats<0>((load_word<4>(b.qs + 4 * w) >> (4 * part)) & 0x0f0f0f0fu, q + 4 * w);
        scale = float(b.d);
        offset = float(b.m);
    }
};
#endif

// Nibbles with the fifth bits of a word.
template <int A, int BIAS, typename B> inline void five_bits(const B& b, uint part, float* q) {
    const uint high = load_word<A>(b.qh) >> (16 * part);
    for (uint w = 0; w < 4; w++) {
        const uint low = (load_word<A>(b.qs + 4 * w) >> (4 * part)) & 0x0f0f0f0fu;
        bytes_to_floats<BIAS>(low | (spread_bits(high >> (4 * w)) << 4), q + 4 * w);
    }
}

#ifdef USES_Q5_0
struct Q5_0 {
    typedef BlockQ5_0 Block;
    enum { VALUES = 32, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        five_bits<2, 16>(b, part, q);
        scale = float(b.d);
    }
};
#endif

#ifdef USES_Q5_1
struct Q5_1 {
    typedef BlockQ5_1 Block;
    enum { VALUES = 32, ALIGN = 4, OFFSET = 1 };
    static void decode(const Block& b, uint part, float* q, float& scale, float& offset) {
        five_bits<4, 0>(b, part, q);
        scale = float(b.d);
        offset = float(b.m);
    }
};
#endif

template <typename B, int N, int A> struct Bytes {
    typedef B Block;
    enum { VALUES = N, ALIGN = A, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint w = 0; w < 4; w++) signed_bytes_to_floats(load_word<A>(b.qs + 16 * part + 4 * w), q + 4 * w);
        scale = float(b.d);
    }
};

// Where the 256-value blocks with 2-bit fields keep sixteen values: half of 128, pair of bits, first of 32 lanes.
struct Place {
    uint half_block, pair, lane;
};
inline Place place(uint part) { return Place{part / 8, (part / 2) % 4, 16 * (part % 2)}; }

#ifdef USES_Q2_K
struct Q2_K {
    typedef BlockQ2_K Block;
    enum { VALUES = 256, ALIGN = 4, OFFSET = 1 };
    static void decode(const Block& b, uint part, float* q, float& scale, float& offset) {
        const Place at = place(part);
        const uchar* qs = b.qs + 32 * at.half_block + at.lane;
        for (uint w = 0; w < 4; w++) bytes_to_floats<0>((load_word<4>(qs + 4 * w) >> (2 * at.pair)) & 0x03030303u, q + 4 * w);
        const uint packed = b.scales[part];
        scale = float(b.d) * float(packed & 15);
        offset = -(float(b.dmin) * float(packed >> 4));
    }
};
#endif

#ifdef USES_Q3_K
struct Q3_K {
    typedef BlockQ3_K Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const Place at = place(part);
        const uint bit = 4 * at.half_block + at.pair;
        const uchar *qs = b.qs + 32 * at.half_block + at.lane, *mask = b.hmask + at.lane;
        for (uint w = 0; w < 4; w++) {
            const uint low = (load_word<2>(qs + 4 * w) >> (2 * at.pair)) & 0x03030303u;
            const uint high = (load_word<2>(mask + 4 * w) >> bit) & 0x01010101u;
            bytes_to_floats<4>(low | (high << 2), q + 4 * w);
        }
        const uint low = (b.scales[part % 8] >> (4 * (part / 8))) & 15;
        const uint high = (b.scales[8 + part % 4] >> (2 * (part / 4))) & 3;
        scale = float(b.d) * float(int(low | (high << 4)) - 32);
    }
};
#endif

// Scale and minimum of 32 values, packed in six bits each.
inline void scale_and_minimum(const uchar* scales, uint j, float& scale, float& minimum) {
    if (j < 4) {
        scale = float(scales[j] & 63);
        minimum = float(scales[j + 4] & 63);
    } else {
        const uint low = scales[j + 4];
        scale = float((low & 15) | ((uint(scales[j - 4]) >> 6) << 4));
        minimum = float((low >> 4) | ((uint(scales[j]) >> 6) << 4));
    }
}

#ifdef USES_Q4_K
struct Q4_K {
    typedef BlockQ4_K Block;
    enum { VALUES = 256, ALIGN = 16, OFFSET = 1 };
    static void decode(const Block& b, uint part, float* q, float& scale, float& offset) {
        const uint j = part / 2;
        const uint4 words = *reinterpret_cast<const uint4*>(b.qs + 32 * (j / 2) + 16 * (part % 2));
        const uint w[4] = {words.x, words.y, words.z, words.w};
        for (uint i = 0; i < 4; i++) bytes_to_floats<0>((w[i] >> (4 * (j % 2))) & 0x0f0f0f0fu, q + 4 * i);
        float minimum;
        scale_and_minimum(b.scales, j, scale, minimum);
        scale = float(b.d) * scale;
        offset = -(float(b.dmin) * minimum);
    }
};
#endif

#ifdef USES_Q5_K
struct Q5_K {
    typedef BlockQ5_K Block;
    enum { VALUES = 256, ALIGN = 16, OFFSET = 1 };
    static void decode(const Block& b, uint part, float* q, float& scale, float& offset) {
        const uint j = part / 2, lane = 16 * (part % 2);
        const uint4 low = *reinterpret_cast<const uint4*>(b.qs + 32 * (j / 2) + lane);
        const uint4 high = *reinterpret_cast<const uint4*>(b.qh + lane);
        const uint l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
        for (uint i = 0; i < 4; i++) {
            bytes_to_floats<0>(((l[i] >> (4 * (j % 2))) & 0x0f0f0f0fu) | (((h[i] >> j) & 0x01010101u) << 4), q + 4 * i);
        }
        float minimum;
        scale_and_minimum(b.scales, j, scale, minimum);
        scale = float(b.d) * scale;
        offset = -(float(b.dmin) * minimum);
    }
};
#endif

#ifdef USES_Q6_K
struct Q6_K {
    typedef BlockQ6_K Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const Place at = place(part);
        const uchar* ql = b.ql + 64 * at.half_block + 32 * (at.pair % 2) + at.lane;
        const uchar* qh = b.qh + 32 * at.half_block + at.lane;
        for (uint w = 0; w < 4; w++) {
            const uint low = (load_word<2>(ql + 4 * w) >> (4 * (at.pair / 2))) & 0x0f0f0f0fu;
            const uint high = (load_word<2>(qh + 4 * w) >> (2 * at.pair)) & 0x03030303u;
            bytes_to_floats<32>(low | (high << 4), q + 4 * w);
        }
        scale = float(b.d) * float(b.scales[part]);
    }
};
#endif

#ifdef USES_Q1_0
struct Q1_0 {
    typedef BlockQ1_0 Block;
    enum { VALUES = 128, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const uint bits = uint(b.qs[2 * part]) | (uint(b.qs[2 * part + 1]) << 8);
        for (uint w = 0; w < 4; w++) bytes_to_floats<1>(spread_bits(bits >> (4 * w)) << 1, q + 4 * w);
        scale = float(b.d);
    }
};
#endif

#ifdef USES_TQ2_0
struct TQ2_0 {
    typedef BlockTQ2_0 Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const Place at = place(part);
        const uchar* qs = b.qs + 32 * at.half_block + at.lane;
        for (uint w = 0; w < 4; w++) bytes_to_floats<1>((load_word<2>(qs + 4 * w) >> (2 * at.pair)) & 0x03030303u, q + 4 * w);
        scale = float(b.d);
    }
};
#endif

#ifdef USES_TQ1_0
struct TQ1_0 {
    typedef BlockTQ1_0 Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    // Digit n of a byte that holds a fraction 0.d0 d1 d2 d3 d4 to the base 3, in units of 1/256.
    static float digit(uint byte, uint n) {
        uint fraction = byte;
        for (uint i = 0; i < n; i++) fraction = (3 * fraction) & 255;
        return float((3 * fraction) >> 8) - 1.0f;
    }
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        if (part < 10) {
            for (uint i = 0; i < 16; i++) q[i] = digit(b.qs[16 * (part % 2) + i], part / 2);
        } else if (part < 15) {
            for (uint i = 0; i < 16; i++) q[i] = digit(b.qs[32 + i], part - 10);
        } else {
            for (uint i = 0; i < 16; i++) q[i] = digit(b.qh[i % 4], i / 4);
        }
        scale = float(b.d);
    }
};
#endif
