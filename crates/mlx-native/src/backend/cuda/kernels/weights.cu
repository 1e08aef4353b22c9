
// Weights as rows of values, sixteen at a time. A weight type W has
//   W(data, scales, biases, args, matrix): one matrix of the operand;
//   chunk(row, c, length, q, scale, offset): values 16 c .. 16 c + 16 of a row of `length` values are scale * q[i] + offset, and
//     anything finite from the row's end on;
//   OFFSET: whether an offset can be other than 0.

// GGML blocks.
template <typename F> struct Blocks {
    enum { OFFSET = F::OFFSET };
    const typename F::Block* blocks;
    ulong per_row;

    Blocks(const uchar* data, const uchar*, const uchar*, const ProductArgs& args, ulong matrix) {
        blocks = reinterpret_cast<const typename F::Block*>(data + matrix * args.w_matrix);
        per_row = args.w_row / sizeof(typename F::Block);
    }

    void chunk(uint row, uint c, uint, float* q, float& scale, float& offset) const {
        constexpr uint parts = F::VALUES / 16;
        offset = 0.0f;
        F::decode(blocks[row * per_row + c / parts], c % parts, q, scale, offset);
    }
};

// Plain floats.
template <typename T> struct Plain {
    enum { OFFSET = 0 };
    const uchar* data;
    ulong row_bytes;

    Plain(const uchar* weights, const uchar*, const uchar*, const ProductArgs& args, ulong matrix) {
        data = weights + matrix * args.w_matrix;
        row_bytes = args.w_row;
    }

    void chunk(uint row, uint c, uint length, float* q, float& scale, float& offset) const {
        const T* values = reinterpret_cast<const T*>(data + row * row_bytes) + 16 * c;
        scale = 1.0f;
        offset = 0.0f;
        if (length - 16 * c >= 16 && reinterpret_cast<ulong>(values) % 16 == 0) {
            constexpr uint words = sizeof(T);
            alignas(16) T buffer[16];
#pragma unroll
            for (uint w = 0; w < words; w++) reinterpret_cast<uint4*>(buffer)[w] = reinterpret_cast<const uint4*>(values)[w];
#pragma unroll
            for (uint i = 0; i < 16; i++) q[i] = float(buffer[i]);
        } else {
            const uint count = min(length - 16 * c, 16u);
#pragma unroll
            for (uint i = 0; i < 16; i++) q[i] = i < count ? float(values[i]) : 0.0f;
        }
    }
};

// Sixteen packed codes of BITS bits as floats, value 0 in the lowest bits of the first byte. Rows of 2, 4 and 8 bits are whole words.
template <uint BITS> inline void packed_codes(const uchar* row, ulong row_bytes, uint c, float* q) {
    if constexpr (BITS == 2 || BITS == 4 || BITS == 8) {
        const uint* words = reinterpret_cast<const uint*>(row) + c * (BITS / 2);
        const ulong count = row_bytes / 4 - c * (BITS / 2);
#pragma unroll
        for (uint w = 0; w < BITS / 2; w++) {
            const uint word = w < count ? words[w] : 0;
            constexpr uint per_byte = 8 / BITS, mask = 0x01010101u * ((1u << BITS) - 1);
#pragma unroll
            for (uint part = 0; part < per_byte; part++) {
                float four[4];
                bytes_to_floats<0>((word >> (BITS * part)) & mask, four);
#pragma unroll
                for (uint i = 0; i < 4; i++) q[4 * per_byte * w + per_byte * i + part] = four[i];
            }
        }
    } else {
        uchar bytes[2 * BITS + 1];
#pragma unroll
        for (uint i = 0; i < 2 * BITS; i++) {
            const ulong at = ulong(c) * (2 * BITS) + i;
            bytes[i] = at < row_bytes ? row[at] : 0;
        }
        bytes[2 * BITS] = 0;
#pragma unroll
        for (uint i = 0; i < 16; i++) {
            const uint bit = BITS * i;
            const uint code = ((uint(bytes[bit / 8]) | (uint(bytes[bit / 8 + 1]) << 8)) >> (bit % 8)) & ((1u << BITS) - 1);
            q[i] = __uint_as_float(code | 0x4b000000u) - 8388608.0f;
        }
    }
}

// MLX affine groups: scale * code + bias.
template <uint BITS, typename S> struct Affine {
    enum { OFFSET = 1 };
    const uchar* data;
    const S* scales;
    const S* biases;
    ulong row_bytes;
    uint groups, group_size;

    Affine(const uchar* packed, const uchar* s, const uchar* b, const ProductArgs& args, ulong matrix) {
        data = packed + matrix * args.w_matrix;
        scales = reinterpret_cast<const S*>(s + matrix * args.s_matrix);
        biases = reinterpret_cast<const S*>(b + matrix * args.b_matrix);
        row_bytes = args.w_row;
        groups = args.groups;
        group_size = args.group_size;
    }

    void chunk(uint row, uint c, uint length, float* q, float& scale, float& offset) const {
        packed_codes<BITS>(data + row * row_bytes, row_bytes, c, q);
        const ulong first = ulong(row) * groups;
        if (group_size % 16 == 0) {
            const ulong group = first + 16 * c / group_size;
            scale = float(scales[group]);
            offset = float(biases[group]);
        } else {
            for (uint i = 0; i < 16; i++) {
                const ulong group = first + min(16 * c + i, length - 1) / group_size;
                q[i] = fmaf(float(scales[group]), q[i], float(biases[group]));
            }
            scale = 1.0f;
            offset = 0.0f;
        }
    }
};

// E4M3: bias 7, no infinities; codes 0x7F and 0xFF are NaN.
inline float e4m3(uint code) {
    const uint exponent = (code >> 3) & 15, mantissa = code & 7;
    float value = exponent == 0 ? float(mantissa) / 512.0f
                                : (1.0f + float(mantissa) / 8.0f) * __uint_as_float((exponent + 120) << 23);
    if ((code & 0x7f) == 0x7f) value = not_a_number();
    return code >> 7 ? -value : value;
}

// E8M0: 2^(e - 127); 0 is subnormal, 255 infinity.
inline float e8m0(uint code) { return __uint_as_float(code == 0 ? 1u << 22 : code << 23); }

#ifdef USES_FP
struct Mxfp4 {
    enum { BITS = 4, GROUP = 32 };
    static float scale(uint code) { return e8m0(code); }
};
struct Mxfp8 {
    enum { BITS = 8, GROUP = 32 };
    static float scale(uint code) { return e8m0(code); }
};
struct Nvfp4 {
    enum { BITS = 4, GROUP = 16 };
    static float scale(uint code) { return e4m3(code); }
};

// MLX floating-point groups: scale * value.
template <typename F> struct FloatGroups {
    enum { OFFSET = 0 };
    const uchar* data;
    const uchar* scales;
    ulong row_bytes;
    uint groups;

    FloatGroups(const uchar* packed, const uchar* s, const uchar*, const ProductArgs& args, ulong matrix) {
        data = packed + matrix * args.w_matrix;
        scales = s + matrix * args.s_matrix;
        row_bytes = args.w_row;
        groups = args.groups;
    }

    void chunk(uint row, uint c, uint length, float* q, float& scale, float& offset) const {
        offset = 0.0f;
        const uint* words = reinterpret_cast<const uint*>(data + row * row_bytes) + c * (F::BITS / 2);
        const ulong count = row_bytes / 4 - c * (F::BITS / 2);
        scale = F::scale(scales[ulong(row) * groups + 16 * c / F::GROUP]);
#pragma unroll
        for (uint w = 0; w < F::BITS / 2; w++) {
            const uint word = w < count ? words[w] : 0;
            if constexpr (F::BITS == 8) {
                for (uint i = 0; i < 4; i++) q[4 * w + i] = e4m3((word >> (8 * i)) & 255);
            } else {
                float even[4], odd[4];
                signed_bytes_to_floats(look_up(E2M1_DOUBLED, word & 0x0f0f0f0fu), even);
                signed_bytes_to_floats(look_up(E2M1_DOUBLED, (word >> 4) & 0x0f0f0f0fu), odd);
                for (uint i = 0; i < 4; i++) {
                    q[8 * w + 2 * i] = 0.5f * even[i];
                    q[8 * w + 2 * i + 1] = 0.5f * odd[i];
                }
            }
        }
    }
};
#endif

// Element types of input and output.
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 2 };

inline void store_y(uchar* y, ulong i, float value, const ProductArgs& args) {
    if (args.y_type == TYPE_F32) reinterpret_cast<float*>(y)[i] = value;
    else reinterpret_cast<bfloat*>(y)[i] = bfloat(value);
}
