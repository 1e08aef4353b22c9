
// Weights as rows of values, sixteen at a time. A weight type W has
//   W(data, scales, biases, args, matrix): one matrix of the operand;
//   chunk(row, c, length, v): values 16 c .. 16 c + 16 of a row of `length` values, zero from its end on;
//   HALF: whether every value is a half.

template <typename T> struct IsHalf { enum { VALUE = 0 }; };
template <> struct IsHalf<half> { enum { VALUE = 1 }; };

// GGML blocks.
template <typename F> struct Blocks {
    enum { HALF = 0 };
    device const typename F::Block* blocks;
    ulong per_row;

    Blocks(device const uchar* data, device const uchar*, device const uchar*, constant MatmulArgs& args, ulong matrix) {
        blocks = (device const typename F::Block*)(data + matrix * args.w_matrix);
        per_row = args.w_row / sizeof(typename F::Block);
    }

    void chunk(uint row, uint c, uint, thread float* v) const {
        const uint parts = F::VALUES / 16;
        F::unpack(blocks[row * per_row + c / parts], c % parts, v);
    }
};

// Plain floats.
template <typename T> struct Plain {
    enum { HALF = IsHalf<T>::VALUE };
    device const uchar* data;
    ulong row_bytes;

    Plain(device const uchar* weights, device const uchar*, device const uchar*, constant MatmulArgs& args, ulong matrix) {
        data = weights + matrix * args.w_matrix;
        row_bytes = args.w_row;
    }

    void chunk(uint row, uint c, uint length, thread float* v) const {
        device const T* values = (device const T*)(data + row * row_bytes) + 16 * c;
        const uint count = min(length - 16 * c, 16u);
        for (uint i = 0; i < 16; i++) v[i] = i < count ? float(values[i]) : 0.0f;
    }
};

// Sixteen packed codes of BITS bits, value 0 in the lowest bits of the first byte. Rows of 2, 4 and 8 bits are whole words.
template <uint BITS> inline void packed_codes(device const uchar* row, ulong row_bytes, uint c, thread uint* codes) {
    const uint mask = (1u << BITS) - 1;
    if (BITS == 2 || BITS == 4 || BITS == 8) {
        device const uint* words = (device const uint*)row + c * (BITS / 2);
        const ulong count = row_bytes / 4 - c * (BITS / 2);
        for (uint w = 0; w < BITS / 2; w++) {
            const uint word = w < count ? words[w] : 0;
            for (uint i = 0; i < 32 / BITS; i++) codes[w * (32 / BITS) + i] = (word >> (BITS * i)) & mask;
        }
    } else {
        uchar bytes[2 * BITS + 1];
        for (uint i = 0; i < 2 * BITS; i++) {
            const ulong at = ulong(c) * (2 * BITS) + i;
            bytes[i] = at < row_bytes ? row[at] : 0;
        }
        bytes[2 * BITS] = 0;
        for (uint i = 0; i < 16; i++) {
            const uint bit = BITS * i;
            codes[i] = ((uint(bytes[bit / 8]) | (uint(bytes[bit / 8 + 1]) << 8)) >> (bit % 8)) & mask;
        }
    }
}

// MLX affine groups: scale * code + bias, rounded after the product and after the sum.
template <uint BITS, typename S> struct Affine {
    enum { HALF = 0 };
    device const uchar* data;
    device const S* scales;
    device const S* biases;
    ulong row_bytes;
    uint groups, group_size;

    Affine(device const uchar* packed, device const uchar* s, device const uchar* b, constant MatmulArgs& args, ulong matrix) {
        data = packed + matrix * args.w_matrix;
        scales = (device const S*)(s + matrix * args.s_matrix);
        biases = (device const S*)(b + matrix * args.b_matrix);
        row_bytes = args.w_row;
        groups = args.groups;
        group_size = args.group_size;
    }

    void chunk(uint row, uint c, uint length, thread float* v) const {
        uint codes[16];
        packed_codes<BITS>(data + row * row_bytes, row_bytes, c, codes);
        const ulong first = ulong(row) * groups;
        if (group_size % 16 == 0) {
            const ulong group = first + 16 * c / group_size;
            const float scale = float(scales[group]), bias = float(biases[group]);
            for (uint i = 0; i < 16; i++) v[i] = 16 * c + i < length ? scale * float(codes[i]) + bias : 0.0f;
        } else {
            for (uint i = 0; i < 16; i++) {
                const uint l = 16 * c + i;
                if (l < length) {
                    const ulong group = first + l / group_size;
                    v[i] = float(scales[group]) * float(codes[i]) + float(biases[group]);
                } else {
                    v[i] = 0.0f;
                }
            }
        }
    }
};

// E4M3: bias 7, no infinities; codes 0x7F and 0xFF are NaN.
inline float e4m3(uint code) {
    const uint exponent = (code >> 3) & 15, mantissa = code & 7;
    float value = exponent == 0 ? float(mantissa) / 512.0f
                                : (1.0f + float(mantissa) / 8.0f) * as_type<float>((exponent + 120) << 23);
    if ((code & 0x7f) == 0x7f) value = NAN;
    return code >> 7 ? -value : value;
}

// E8M0: 2^(e - 127); 0 is subnormal, 255 infinity.
inline float e8m0(uint code) { return as_type<float>(code == 0 ? 1u << 22 : code << 23); }

#ifdef USES_FP
struct Mxfp4 {
    enum { BITS = 4, GROUP = 32 };
    static float scale(uint code) { return e8m0(code); }
    static float value(uint code) { return 0.5f * float(E2M1_DOUBLED[code]); }
};

struct Mxfp8 {
    enum { BITS = 8, GROUP = 32 };
    static float scale(uint code) { return e8m0(code); }
    static float value(uint code) { return e4m3(code); }
};

struct Nvfp4 {
    enum { BITS = 4, GROUP = 16 };
    static float scale(uint code) { return e4m3(code); }
    static float value(uint code) { return 0.5f * float(E2M1_DOUBLED[code]); }
};

// MLX floating-point groups: scale * code.
template <typename F> struct FloatGroups {
    enum { HALF = 0 };
    device const uchar* data;
    device const uchar* scales;
    ulong row_bytes;
    uint groups;

    FloatGroups(device const uchar* packed, device const uchar* s, device const uchar*, constant MatmulArgs& args, ulong matrix) {
        data = packed + matrix * args.w_matrix;
        scales = s + matrix * args.s_matrix;
        row_bytes = args.w_row;
        groups = args.groups;
    }

    void chunk(uint row, uint c, uint length, thread float* v) const {
        uint codes[16];
        packed_codes<F::BITS>(data + row * row_bytes, row_bytes, c, codes);
        const float scale = F::scale(scales[ulong(row) * groups + 16 * c / F::GROUP]);
        for (uint i = 0; i < 16; i++) v[i] = 16 * c + i < length ? scale * F::value(codes[i]) : 0.0f;
    }
};
#endif
