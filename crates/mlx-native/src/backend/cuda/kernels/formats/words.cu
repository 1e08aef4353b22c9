
// Codes as floats, four bytes at a time.

// Four bytes at an address that is a multiple of A.
template <int A> inline uint load_word(const void* address) {
    if constexpr (A >= 4) {
        return *static_cast<const uint*>(address);
    } else if constexpr (A == 2) {
        const ushort* p = static_cast<const ushort*>(address);
        return uint(p[0]) | (uint(p[1]) << 16);
    } else {
        const uchar* p = static_cast<const uchar*>(address);
        return uint(p[0]) | (uint(p[1]) << 8) | (uint(p[2]) << 16) | (uint(p[3]) << 24);
    }
}

// q[i] = byte i - BIAS. A byte below the mantissa of 2^23 makes the float 2^23 + byte: no conversion instruction, which are slow.
template <int BIAS> inline void bytes_to_floats(uint word, float* q) {
    const float base = 8388608.0f + float(BIAS);
    q[0] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650)) - base;
    q[1] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7651)) - base;
    q[2] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7652)) - base;
    q[3] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7653)) - base;
}
inline void signed_bytes_to_floats(uint word, float* q) { bytes_to_floats<128>(word ^ 0x80808080u, q); }

// Bits 0..4 of `bits` as bit 0 of four bytes.
inline uint spread_bits(uint bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

// The entries of a table of sixteen signed bytes that four nibbles, a byte each, name.
inline uint look_up(const signed char (&table)[16], uint nibbles) {
    uint words[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
        words[w] = uint(uchar(table[4 * w])) | (uint(uchar(table[4 * w + 1])) << 8) | (uint(uchar(table[4 * w + 2])) << 16) |
                   (uint(uchar(table[4 * w + 3])) << 24);
    }
    // A selector has a nibble for each byte.
    const uint pairs = nibbles | (nibbles >> 4);
    const uint selector = (pairs & 0xffu) | ((pairs >> 8) & 0xff00u);
    const uint low = __byte_perm(words[0], words[1], selector & 0x7777u);
    const uint high = __byte_perm(words[2], words[3], selector & 0x7777u);
    const uint is_high = ((nibbles >> 3) & 0x01010101u) * 0xffu;
    return (high & is_high) | (low & ~is_high);
}
