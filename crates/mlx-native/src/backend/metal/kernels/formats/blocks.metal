
// Each format exists only in the texts that use it, where its block is declared.
//
// What a GGML block means: sixteen values from 16 * part on, as in the Rust code of format/ggml. Scales are widened to float before
// anything is computed with them: halves below 2^-14 have few bits to lose.

// Byte i of a codebook word, a signed coordinate.
inline float coordinate(ulong point, uint i) { return float(char(uchar(point >> (8 * i)))); }
inline float coordinate(uint point, uint i) { return float(char(uchar(point >> (8 * i)))); }

// A nibble of each of sixteen bytes: the low ones for part 0, the high ones for part 1.
inline uint nibble(uchar byte, uint part) { return (uint(byte) >> (4 * part)) & 15; }

#ifdef USES_Q4_0
struct Q4_0 {
    typedef BlockQ4_0 Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        for (uint i = 0; i < 16; i++) v[i] = d * (float(nibble(b.qs[i], part)) - 8.0f);
    }
};
#endif

#ifdef USES_Q4_1
struct Q4_1 {
    typedef BlockQ4_1 Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d), m = float(b.m);
        for (uint i = 0; i < 16; i++) v[i] = d * float(nibble(b.qs[i], part)) + m;
    }
};
#endif

// The fifth bits of sixteen values, value i in bit i.
inline uint fifth_bits(device const uchar* qh, uint part) { return uint(qh[2 * part]) | (uint(qh[2 * part + 1]) << 8); }

#ifdef USES_Q5_0
struct Q5_0 {
    typedef BlockQ5_0 Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        const uint high = fifth_bits(b.qh, part);
        for (uint i = 0; i < 16; i++) v[i] = d * (float(nibble(b.qs[i], part) | (((high >> i) & 1) << 4)) - 16.0f);
    }
};
#endif

#ifdef USES_Q5_1
struct Q5_1 {
    typedef BlockQ5_1 Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d), m = float(b.m);
        const uint high = fifth_bits(b.qh, part);
        for (uint i = 0; i < 16; i++) v[i] = d * float(nibble(b.qs[i], part) | (((high >> i) & 1) << 4)) + m;
    }
};
#endif

template <typename B, int N> struct Bytes {
    typedef B Block;
    enum { VALUES = N };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        for (uint i = 0; i < 16; i++) v[i] = d * float(b.qs[16 * part + i]);
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
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const Place at = place(part);
        const uint scale = b.scales[part];
        const float d = float(b.d) * float(scale & 15), m = float(b.dmin) * float(scale >> 4);
        for (uint i = 0; i < 16; i++) {
            v[i] = d * float((b.qs[32 * at.half_block + at.lane + i] >> (2 * at.pair)) & 3) - m;
        }
    }
};
#endif

#ifdef USES_Q3_K
struct Q3_K {
    typedef BlockQ3_K Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const Place at = place(part);
        const uint low = (b.scales[part % 8] >> (4 * (part / 8))) & 15;
        const uint high = (b.scales[8 + part % 4] >> (2 * (part / 4))) & 3;
        const float d = float(b.d) * float(int(low | (high << 4)) - 32);
        const uint bit = 4 * at.half_block + at.pair;
        for (uint i = 0; i < 16; i++) {
            const uint q = (b.qs[32 * at.half_block + at.lane + i] >> (2 * at.pair)) & 3;
            v[i] = d * float(int(q | (((b.hmask[at.lane + i] >> bit) & 1) << 2)) - 4);
        }
    }
};
#endif

// Scale and minimum of 32 values, packed in six bits each.
inline float2 scale_min(device const uchar* scales, uint j) {
    if (j < 4) return float2(float(scales[j] & 63), float(scales[j + 4] & 63));
    const uint low = scales[j + 4];
    return float2(float((low & 15) | ((uint(scales[j - 4]) >> 6) << 4)), float((low >> 4) | ((uint(scales[j]) >> 6) << 4)));
}

#ifdef USES_Q4_K
struct Q4_K {
    typedef BlockQ4_K Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const uint j = part / 2;
        const float2 packed = scale_min(b.scales, j);
        const float d = float(b.d) * packed.x, m = float(b.dmin) * packed.y;
        device const uchar* qs = b.qs + 32 * (j / 2) + 16 * (part % 2);
        for (uint i = 0; i < 16; i++) v[i] = d * float(nibble(qs[i], j % 2)) - m;
    }
};
#endif

#ifdef USES_Q5_K
struct Q5_K {
    typedef BlockQ5_K Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const uint j = part / 2, lane = 16 * (part % 2);
        const float2 packed = scale_min(b.scales, j);
        const float d = float(b.d) * packed.x, m = float(b.dmin) * packed.y;
        device const uchar* qs = b.qs + 32 * (j / 2) + lane;
        for (uint i = 0; i < 16; i++) {
            v[i] = d * float(nibble(qs[i], j % 2) | (((uint(b.qh[lane + i]) >> j) & 1) << 4)) - m;
        }
    }
};
#endif

#ifdef USES_Q6_K
struct Q6_K {
    typedef BlockQ6_K Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const Place at = place(part);
        const float d = float(b.d) * float(b.scales[part]);
        device const uchar* ql = b.ql + 64 * at.half_block + 32 * (at.pair % 2) + at.lane;
        device const uchar* qh = b.qh + 32 * at.half_block + at.lane;
        for (uint i = 0; i < 16; i++) {
            const uint q = nibble(ql[i], at.pair / 2) | (((uint(qh[i]) >> (2 * at.pair)) & 3) << 4);
            v[i] = d * float(int(q) - 32);
        }
    }
};
#endif

#ifdef USES_Q1_0
struct Q1_0 {
    typedef BlockQ1_0 Block;
    enum { VALUES = 128 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        const uint bits = fifth_bits(b.qs, part);
        for (uint i = 0; i < 16; i++) v[i] = (bits >> i) & 1 ? d : -d;
    }
};
#endif

#ifdef USES_TQ2_0
struct TQ2_0 {
    typedef BlockTQ2_0 Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const Place at = place(part);
        const float d = float(b.d);
        for (uint i = 0; i < 16; i++) {
            v[i] = d * (float((b.qs[32 * at.half_block + at.lane + i] >> (2 * at.pair)) & 3) - 1.0f);
        }
    }
};
#endif

#ifdef USES_TQ1_0
struct TQ1_0 {
    typedef BlockTQ1_0 Block;
    enum { VALUES = 256 };
    // Digit n of a byte that holds a fraction 0.d0 d1 d2 d3 d4 to the base 3, in units of 1/256.
    static float digit(uint byte, uint n) {
        uint fraction = byte;
        for (uint i = 0; i < n; i++) fraction = (3 * fraction) & 255;
        return float((3 * fraction) >> 8) - 1.0f;
    }
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        if (part < 10) {
            for (uint i = 0; i < 16; i++) v[i] = d * digit(b.qs[16 * (part % 2) + i], part / 2);
        } else if (part < 15) {
            for (uint i = 0; i < 16; i++) v[i] = d * digit(b.qs[32 + i], part - 10);
        } else {
            for (uint i = 0; i < 16; i++) v[i] = d * digit(b.qh[i % 4], i / 4);
        }
    }
};
#endif
