
// Formats whose values stand in codebooks, in the terms of blocks.cu.

#ifdef USES_IQ4_NL
struct IQ4_NL {
    typedef BlockIQ4_NL Block;
    enum { VALUES = 32, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint w = 0; w < 4; w++) {
            const uint nibbles = (load_word<2>(b.qs + 4 * w) >> (4 * part)) & 0x0f0f0f0fu;
            signed_bytes_to_floats(look_up(IQ4_VALUES, nibbles), q + 4 * w);
        }
        scale = float(b.d);
    }
};
#endif

#ifdef USES_IQ4_XS
struct IQ4_XS {
    typedef BlockIQ4_XS Block;
    enum { VALUES = 256, ALIGN = 4, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const uint j = part / 2;
        for (uint w = 0; w < 4; w++) {
            const uint nibbles = (load_word<4>(b.qs + 16 * j + 4 * w) >> (4 * (part % 2))) & 0x0f0f0f0fu;
            signed_bytes_to_floats(look_up(IQ4_VALUES, nibbles), q + 4 * w);
        }
        const uint low = (uint(b.scales_l[j / 2]) >> (4 * (j % 2))) & 15, high = (uint(b.scales_h) >> (2 * j)) & 3;
        scale = float(b.d) * float(int(low | (high << 4)) - 32);
    }
};
#endif

#ifdef USES_MXFP4
struct MXFP4 {
    typedef BlockMXFP4 Block;
    enum { VALUES = 32, ALIGN = 1, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint w = 0; w < 4; w++) {
            const uint nibbles = (load_word<1>(b.qs + 4 * w) >> (4 * part)) & 0x0f0f0f0fu;
            signed_bytes_to_floats(look_up(E2M1_DOUBLED, nibbles), q + 4 * w);
        }
        // 2^(e - 128): half of the scale, as the codebook has twice the values. The two smallest are subnormal.
        const uint e = b.e;
        scale = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
};
#endif

#ifdef USES_NVFP4
struct NVFP4 {
    typedef BlockNVFP4 Block;
    enum { VALUES = 64, ALIGN = 4, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint w = 0; w < 4; w++) {
            const uint nibbles = (load_word<4>(b.qs + 8 * part + 4 * (w % 2)) >> (4 * (w / 2))) & 0x0f0f0f0fu;
            signed_bytes_to_floats(look_up(E2M1_DOUBLED, nibbles), q + 4 * w);
        }
        // Half of an E4M3 scale whose sign does not count; 0x7F reads as 0.
        const uint code = b.d[part], exponent = (code >> 3) & 15;
        const float mantissa = float(code & 7);
        const float e4m3 = exponent == 0 ? mantissa / 512.0f : (1.0f + mantissa / 8.0f) * __uint_as_float((exponent + 120) << 23);
        scale = code == 0x7f ? 0.0f : 0.5f * e4m3;
    }
};
#endif

// Magnitudes of a grid point with the signs of a byte, bit i set for a negative value i.
inline void signed_point(uint point, uint signs, float* q) {
    signed_bytes_to_floats(point, q);
    for (uint i = 0; i < 4; i++) q[i] = (signs >> i) & 1 ? -q[i] : q[i];
}
inline void signed_point(ulong point, uint signs, float* q) {
    signed_point(uint(point), signs, q);
    signed_point(uint(point >> 32), signs >> 4, q + 4);
}

#ifdef USES_IQ2_XXS
struct IQ2_XXS {
    typedef BlockIQ2_XXS Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const ushort* words = b.qs + 4 * (part / 2);
        const uint packed = uint(words[2]) | (uint(words[3]) << 16);
        // Sixteen values are two points: both indices lie in one word.
        const uint indices = words[part % 2];
        for (uint o = 0; o < 2; o++) {
            const uint signs = EVEN_SIGNS[(packed >> (7 * (2 * (part % 2) + o))) & 127];
            signed_point(IQ2_XXS_GRID[(indices >> (8 * o)) & 255], signs, q + 8 * o);
        }
        scale = float(b.d) * (0.5f + float(packed >> 28)) * 0.25f;
    }
};
#endif

#ifdef USES_IQ2_XS
struct IQ2_XS {
    typedef BlockIQ2_XS Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint o = 0; o < 2; o++) {
            const uint code = b.qs[2 * part + o];
            signed_point(IQ2_XS_GRID[code & 511], EVEN_SIGNS[code >> 9], q + 8 * o);
        }
        scale = float(b.d) * (0.5f + float((uint(b.scales[part / 2]) >> (4 * (part % 2))) & 15)) * 0.25f;
    }
};
#endif

#ifdef USES_IQ2_S
struct IQ2_S {
    typedef BlockIQ2_S Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint o = 0; o < 2; o++) {
            const uint i = 2 * part + o;
            const uint high = (uint(b.qh[i / 4]) >> (2 * (i % 4))) & 3;
            signed_point(IQ2_S_GRID[uint(b.qs[i]) | (high << 8)], b.signs[i], q + 8 * o);
        }
        scale = float(b.d) * (0.5f + float((uint(b.scales[part / 2]) >> (4 * (part % 2))) & 15)) * 0.25f;
    }
};
#endif

#ifdef USES_IQ3_XXS
struct IQ3_XXS {
    typedef BlockIQ3_XXS Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const uint packed = load_word<2>(b.scales_and_signs + 4 * (part / 2));
        for (uint o = 0; o < 4; o++) {
            const uint signs = EVEN_SIGNS[(packed >> (7 * (2 * (part % 2) + o / 2))) & 127];
            signed_point(IQ3_XXS_GRID[b.qs[4 * part + o]], signs >> (4 * (o % 2)), q + 4 * o);
        }
        scale = float(b.d) * (0.5f + float(packed >> 28)) * 0.5f;
    }
};
#endif

#ifdef USES_IQ3_S
struct IQ3_S {
    typedef BlockIQ3_S Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        for (uint o = 0; o < 4; o++) {
            const uint i = 4 * part + o;
            const uint high = (uint(b.qh[i / 8]) >> (i % 8)) & 1;
            signed_point(IQ3_S_GRID[uint(b.qs[i]) | (high << 8)], uint(b.signs[i / 2]) >> (4 * (i % 2)), q + 4 * o);
        }
        scale = float(b.d) * float(1 + 2 * ((uint(b.scales[part / 4]) >> (4 * ((part / 2) % 2))) & 15));
    }
};
#endif

#if defined(USES_IQ1_S) || defined(USES_IQ1_M)
// Eight values: a ternary point shifted by an eighth.
inline void shifted_point(uint index, bool down, float* q) {
    const ulong point = IQ1_GRID[index];
    const float delta = down ? -IQ1_DELTA : IQ1_DELTA;
    signed_bytes_to_floats(uint(point), q);
    signed_bytes_to_floats(uint(point >> 32), q + 4);
    for (uint i = 0; i < 8; i++) q[i] += delta;
}
#endif

#ifdef USES_IQ1_S
struct IQ1_S {
    typedef BlockIQ1_S Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        const uint qh = b.qh[part / 2];
        for (uint o = 0; o < 2; o++) {
            const uint i = 2 * part + o;
            shifted_point(uint(b.qs[i]) | (((qh >> (3 * (i % 4))) & 7) << 8), qh >> 15, q + 8 * o);
        }
        scale = float(b.d) * float(2 * ((qh >> 12) & 7) + 1);
    }
};
#endif

#ifdef USES_IQ1_M
struct IQ1_M {
    typedef BlockIQ1_M Block;
    enum { VALUES = 256, ALIGN = 2, OFFSET = 0 };
    static uint word(const Block& b, uint i) { return uint(b.scales[2 * i]) | (uint(b.scales[2 * i + 1]) << 8); }
    static void decode(const Block& b, uint part, float* q, float& scale, float&) {
        // The scale of the scales is spread over the top nibbles of the four words.
        uint bits = 0;
        for (uint i = 0; i < 4; i++) bits |= (word(b, i) >> 12) << (4 * i);
        for (uint o = 0; o < 2; o++) {
            const uint high = (uint(b.qh[part]) >> (4 * o)) & 15;
            shifted_point(uint(b.qs[2 * part + o]) | ((high & 7) << 8), high >> 3, q + 8 * o);
        }
        scale = low_half(bits) * float(2 * ((word(b, part / 4) >> (3 * (part % 4))) & 7) + 1);
    }
};
#endif
