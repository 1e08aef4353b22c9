
// Formats whose values stand in codebooks. Only those whose codebook is rendered exist in a text: each is guarded by its name.

#ifdef USES_IQ4_NL
struct IQ4_NL {
    typedef BlockIQ4_NL Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d);
        for (uint i = 0; i < 16; i++) v[i] = d * float(IQ4_VALUES[nibble(b.qs[i], part)]);
    }
};
#endif

#ifdef USES_IQ4_XS
struct IQ4_XS {
    typedef BlockIQ4_XS Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const uint j = part / 2;
        const uint low = nibble(b.scales_l[j / 2], j % 2), high = (uint(b.scales_h) >> (2 * j)) & 3;
        const float d = float(b.d) * float(int(low | (high << 4)) - 32);
        for (uint i = 0; i < 16; i++) v[i] = d * float(IQ4_VALUES[nibble(b.qs[16 * j + i], part % 2)]);
    }
};
#endif

#ifdef USES_MXFP4
struct MXFP4 {
    typedef BlockMXFP4 Block;
    enum { VALUES = 32 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        // 2^(e - 128): half of the scale, as the codebook has twice the values. The two smallest are subnormal.
        const uint e = b.e;
        const float d = as_type<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        for (uint i = 0; i < 16; i++) v[i] = d * float(E2M1_DOUBLED[nibble(b.qs[i], part)]);
    }
};
#endif

#ifdef USES_NVFP4
struct NVFP4 {
    typedef BlockNVFP4 Block;
    enum { VALUES = 64 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        // Half of an E4M3 scale whose sign does not count; 0x7F reads as 0.
        const uint code = b.d[part], exponent = (code >> 3) & 15;
        const float mantissa = float(code & 7);
        const float scale = exponent == 0 ? mantissa / 512.0f : (1.0f + mantissa / 8.0f) * as_type<float>((exponent + 120) << 23);
        const float d = code == 0x7f ? 0.0f : 0.5f * scale;
        for (uint i = 0; i < 16; i++) v[i] = d * float(E2M1_DOUBLED[nibble(b.qs[8 * part + i % 8], i / 8)]);
    }
};
#endif

// Eight values: magnitudes of a grid point with the signs of a byte, bit i set for a negative value i.
inline void signed_point(float scale, ulong point, uint signs, thread float* v) {
    for (uint i = 0; i < 8; i++) v[i] = scale * ((signs >> i) & 1 ? -coordinate(point, i) : coordinate(point, i));
}
inline void signed_point(float scale, uint point, uint signs, thread float* v) {
    for (uint i = 0; i < 4; i++) v[i] = scale * ((signs >> i) & 1 ? -coordinate(point, i) : coordinate(point, i));
}

#ifdef USES_IQ2_XXS
struct IQ2_XXS {
    typedef BlockIQ2_XXS Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        device const unsigned short* words = b.qs + 4 * (part / 2);
        const uint packed = uint(words[2]) | (uint(words[3]) << 16);
        const float d = float(b.d) * (0.5f + float(packed >> 28)) * 0.25f;
        // Sixteen values are two points: both indices lie in one word.
        const uint indices = words[part % 2];
        for (uint o = 0; o < 2; o++) {
            const uint signs = EVEN_SIGNS[(packed >> (7 * (2 * (part % 2) + o))) & 127];
            signed_point(d, IQ2_XXS_GRID[(indices >> (8 * o)) & 255], signs, v + 8 * o);
        }
    }
};
#endif

#ifdef USES_IQ2_XS
struct IQ2_XS {
    typedef BlockIQ2_XS Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d) * (0.5f + float(nibble(b.scales[part / 2], part % 2))) * 0.25f;
        for (uint o = 0; o < 2; o++) {
            const uint q = b.qs[2 * part + o];
            signed_point(d, IQ2_XS_GRID[q & 511], EVEN_SIGNS[q >> 9], v + 8 * o);
        }
    }
};
#endif

#ifdef USES_IQ2_S
struct IQ2_S {
    typedef BlockIQ2_S Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d) * (0.5f + float(nibble(b.scales[part / 2], part % 2))) * 0.25f;
        for (uint o = 0; o < 2; o++) {
            const uint i = 2 * part + o;
            const uint high = (uint(b.qh[i / 4]) >> (2 * (i % 4))) & 3;
            signed_point(d, IQ2_S_GRID[uint(b.qs[i]) | (high << 8)], b.signs[i], v + 8 * o);
        }
    }
};
#endif

#ifdef USES_IQ3_XXS
struct IQ3_XXS {
    typedef BlockIQ3_XXS Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        device const uchar* bytes = b.scales_and_signs + 4 * (part / 2);
        const uint packed = uint(bytes[0]) | (uint(bytes[1]) << 8) | (uint(bytes[2]) << 16) | (uint(bytes[3]) << 24);
        const float d = float(b.d) * (0.5f + float(packed >> 28)) * 0.5f;
        for (uint o = 0; o < 4; o++) {
            const uint signs = EVEN_SIGNS[(packed >> (7 * (2 * (part % 2) + o / 2))) & 127];
            signed_point(d, IQ3_XXS_GRID[b.qs[4 * part + o]], signs >> (4 * (o % 2)), v + 4 * o);
        }
    }
};
#endif

#ifdef USES_IQ3_S
struct IQ3_S {
    typedef BlockIQ3_S Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const float d = float(b.d) * float(1 + 2 * nibble(b.scales[part / 4], (part / 2) % 2));
        for (uint o = 0; o < 4; o++) {
            const uint i = 4 * part + o;
            const uint high = (uint(b.qh[i / 8]) >> (i % 8)) & 1;
            signed_point(d, IQ3_S_GRID[uint(b.qs[i]) | (high << 8)], uint(b.signs[i / 2]) >> (4 * (i % 2)), v + 4 * o);
        }
    }
};
#endif

#if defined(USES_IQ1_S) || defined(USES_IQ1_M)
// Eight values: a ternary point shifted by an eighth.
inline void shifted_point(float scale, uint index, bool down, thread float* v) {
    const ulong point = IQ1_GRID[index];
    const float delta = down ? -IQ1_DELTA : IQ1_DELTA;
    for (uint i = 0; i < 8; i++) v[i] = scale * (coordinate(point, i) + delta);
}
#endif

#ifdef USES_IQ1_S
struct IQ1_S {
    typedef BlockIQ1_S Block;
    enum { VALUES = 256 };
    static void unpack(device const Block& b, uint part, thread float* v) {
        const uint qh = b.qh[part / 2];
        const float d = float(b.d) * float(2 * ((qh >> 12) & 7) + 1);
        for (uint o = 0; o < 2; o++) {
            const uint i = 2 * part + o;
            shifted_point(d, uint(b.qs[i]) | (((qh >> (3 * (i % 4))) & 7) << 8), qh >> 15, v + 8 * o);
        }
    }
};
#endif

#ifdef USES_IQ1_M
struct IQ1_M {
    typedef BlockIQ1_M Block;
    enum { VALUES = 256 };
    static uint word(device const Block& b, uint i) { return uint(b.scales[2 * i]) | (uint(b.scales[2 * i + 1]) << 8); }
    static void unpack(device const Block& b, uint part, thread float* v) {
        // The scale of the scales is spread over the top nibbles of the four words.
        uint bits = 0;
        for (uint i = 0; i < 4; i++) bits |= (word(b, i) >> 12) << (4 * i);
        const uint scale = (word(b, part / 4) >> (3 * (part % 4))) & 7;
        const float d = float(as_type<half>(ushort(bits))) * float(2 * scale + 1);
        for (uint o = 0; o < 2; o++) {
            const uint high = nibble(b.qh[part], o);
            shifted_point(d, uint(b.qs[2 * part + o]) | ((high & 7) << 8), high >> 3, v + 8 * o);
        }
    }
};
#endif
