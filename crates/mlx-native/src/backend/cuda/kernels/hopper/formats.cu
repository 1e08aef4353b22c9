// How 256 values of a weight row (a unit) become operands of the tensor cores.
//
// A unit is four chunks of 64 values, a chunk four steps of 16, a step one k16 of an mma. In a step lane t of four holds the values
// e = 0, 1 (first register) and e = 2, 3 (second). Which of the row's values these are is the format's choice, as the input is permuted
// to match: `place` maps a value of the unit to its position 16 step + 4 t + e.
//
// `bits<MAGIC>` gives the raw integers of a chunk, each times 2^shift(step), or-ed into the halves of MAGIC. With MAGIC = 0 they are
// subnormal halves: integer x 2^-24, exact operands for the tensor cores at the price of one AND. With MAGIC = 1024 they are 1024 + integer,
// which half arithmetic turns into a scaled weight. Formats whose bits are true halves already (TRUE_HALVES) ignore MAGIC.
//
// value = unit_scale x scale(group) x (integer - OFFSET) + unit_minimum x minimum(group); a group is SUB values, 16, 32 or 64.
// SHIFT tells where a unit starts in shared memory: 0 on a word, 16 two bytes past one, -1 wherever row.bits says, -2 the same, but on an even byte. With the last two a lane reads
// its four of 16 bytes where they are, so that nothing is rotated: `Unrotated`.

constexpr u32 HALF_1024 = 0x64006400u;
constexpr float SUBNORMAL = 1.0f / 16777216.0f; // 2^-24

template <int SHIFT> struct Row {
    static constexpr int PAST = SHIFT;
    const u8* at;                // the unit in shared memory, rounded down to a word
    u32 bits;                    // SHIFT < 0: how many bits past that word the unit starts
    const u8 *scales, *biases;   // affine: the unit's first scale and bias

    // The word `offset` bytes into the unit; offset is a multiple of 4.
    DI u32 word(u32 offset) const {
        // Pointers, not offsets: sums of constants go into the instructions.
        const u32* from = (const u32*)(at + offset);
        if constexpr (SHIFT == 0) return *from;
        else if constexpr (SHIFT == 16) return prmt(from[0], from[1], 0x5432);
        else return funnel(from[0], from[1], bits);
    }
    // The same row, every offset `bytes` further on, and 4 t further on.
    DI Row moved(u32 bytes) const { return {at + bytes, bits, scales, biases}; }
    DI Row lane(int t) const { return moved(4 * t); }
    // Two bytes at an even constant offset lie in one word, whatever the unit's start: that word, and whether they are its upper ones: 0 or 2.
    DI u32 holding(u32 offset) const {
        if constexpr (SHIFT < 0) return word(offset & ~3u);
        else return *(const u32*)(at + (offset + SHIFT / 8 & ~3u));
    }
    DI static constexpr u32 within(u32 offset) { return offset + (SHIFT < 0 ? 0 : SHIFT / 8) & 2; }
    // The half at `offset`, an even constant, in both halves of the result.
    DI u32 half(u32 offset) const {
        u32 w = holding(offset);
        return prmt(w, w, within(offset) ? 0x3232 : 0x1010);
    }
    DI u32 byte(u32 offset) const { return word(offset & ~3u) >> (8 * (offset & 3)) & 255; }
    // The unit's first byte, and the two bytes at an even offset from it that a lane chooses.
    DI const u8* start() const { return at + (SHIFT < 0 ? bits >> 3 : SHIFT / 8); }
    DI u32 two_bytes(u32 offset) const {
        const u8* from = start() + offset;
        if constexpr (SHIFT == -1) return from[0] | from[1] << 8;
        else return *(const u16*)from;
    }
    // Four of the 16 bytes at the constant `offset` for lane t: bytes 4t - a + 0..3 (mod 16), a = offset % 4.
    DI u32 quad(u32 offset, int t) const {
        const u32 a = offset & 3;
        if constexpr (SHIFT < 0) { // in order
            const u32* from = (const u32*)(at + 4 * t + ((bits >> 3) + a & 4) + (offset - a));
            return funnel(from[0], from[1], bits + 8 * a);
        }
        u32 w = lane(t).word(offset - a);
        if (a == 0) return w;
        u32 end = word(offset - a + 16);
        return prmt(w, end, t ? 0x3210 : a == 1 ? 0x3214 : a == 2 ? 0x3254 : 0x3654);
    }
    // Lane t's four of the 16 bytes at the even constant `offset`, in order.
    DI u32 even_quad(u32 offset, int t) const {
        const Row own = lane(t);
        return within(offset) ? prmt(own.holding(offset), own.holding(offset + 2), 0x5432) : own.holding(offset);
    }
};

// One of two integers below 1024 in the halves of a word, times SUBNORMAL.
DI float subnormal(u32 pair, int which) { return which ? high_half(pair) : low_half(pair); }
// One of a pair of halves in both halves of the result.
DI u32 spread(u32 pair, int which) {
    u32 r;
    if (which) asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, h};}" : "=r"(r) : "r"(pair));
    else asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {l, l};}" : "=r"(r) : "r"(pair));
    return r;
}
// The halves integer - less, for pairs of integers below 1024 - less or-ed into HALF_1024.
DI u32 integers(u32 pair, int less) { return hadd2(pair, (0xe400u | (u32)less) * 0x10001u); }
// The halves -integer x SUBNORMAL.
constexpr u32 minus_subnormals(u32 integer) { return (0x8000u | integer) * 0x10001u; }

DI constexpr int swap_middle(int b) { return (b >> 1 | b << 1) & 3; }
// Where byte b of a 16-byte run that `quad` reads at alignment a ends up, with bytes (0, 2) and (1, 3) paired or in natural order.
DI constexpr int nibble_place(int b, int a) { return ((b + a) & 12) + swap_middle((b + a) & 3); }
DI constexpr int byte_place(int b, int a) { return (b + a) & 15; }
// Runs of 16 values where bytes hold fields of values 32 or 64 apart: run 8h + 2s + x is step 4 (2h + x) + s.
DI constexpr int plane_step(int run) { return (run & 8) + 4 * (run & 1) + (run >> 1 & 3); }

// The low and the high nibbles of a quad, as pairs of bytes (0, 2) and (1, 3).
template <u32 MAGIC> DI void nibbles(u32 w, u32 (&low)[2], u32 (&high)[2]) {
    u32 y = w >> 8;
    low[0] = and_or(w, 0x000f000fu, MAGIC), low[1] = and_or(y, 0x000f000fu, MAGIC);
    high[0] = and_or(w, 0x00f000f0u, MAGIC), high[1] = and_or(y, 0x00f000f0u, MAGIC);
}
template <u32 MAGIC> DI void bytes(u32 w, u32 (&q)[2]) {
    q[0] = prmt(w, MAGIC, 0x5150), q[1] = prmt(w, MAGIC, 0x5352);
}

// 16-entry tables of bytes: table(nibble) for the eight nibbles of w, in order.
DI void lookup(u32 w, u32 t0, u32 t1, u32 t2, u32 t3, u32& first, u32& second) {
    u32 s = w & 0x77777777u, which = and_or(w >> 1, 0x44444444u, 0x32103210u);
    first = prmt(prmt(t0, t1, s), prmt(t2, t3, s), which);
    s >>= 16, which >>= 16;
    second = prmt(prmt(t0, t1, s), prmt(t2, t3, s), which);
}

struct Plain { // what most formats have in common
    static constexpr int SUB = 32, OFFSET = 0, LIFT = 0; // LIFT: the half-precision weights are times 2^LIFT
    static constexpr int SLICES = 1, RAGGED_SLICES = 1;  // of a unit, each a stage of the widest tiles; of ragged rows, where a slice takes as many copies as a unit
    static constexpr int TAIL = 0;                       // bytes of a ragged row's last values, 64 or less, that the widest tiles copy apart, and where they may start
    static constexpr float QUANTUM = SUBNORMAL;          // what bits<0> gives for 1
    static constexpr bool MINIMUM = false, UNIT_SCALE = false, TRUE_HALVES = false, AFFINE = false;
    // Scales and minimums of the tile kernel are found in half arithmetic: `half_scale` and `half_minimum`, in both halves.
    static constexpr bool HALVES = false;
    static constexpr bool RANGED = false; // scales go beyond halves: the tile kernel keeps a power of two for each row
    // The row kernel gets a unit's minimums times the sums of x from one mma: `minimums` gives lane t those of the groups 2t and 2t + 1, or, of sixteen
    // groups, 4t and 4t + 2, then 4t + 1 and 4t + 3, as pairs of halves. NEVER, or WHEN_PREPARED: beside the conversion of x registers run out.
    enum Fold { NEVER, WHEN_PREPARED, ALWAYS };
    static constexpr Fold FOLD = NEVER;
    static constexpr bool ROTATED = false; // `place` rotates runs of 16 values by what their bytes start past a word, `unrotated` does not
    static constexpr bool HIGH_APART = false; // `multiply_spread` takes high bits, as `high_bits` gives them, as operands of their own
    static constexpr bool PAIRED = false; // runs of 16 values alternate between two steps
    // Of five to eight rows: the code that makes a unit's operands is there once, which leaves more registers, and the first groups that find no stage are fetched into L2.
    static constexpr bool ROLLED = true, FETCHED = false;
    // Of few tokens' experts: strips that a block takes at once where it has sixteen or more. Two where memory brings them faster than answers come, and instructions keep up.
    static constexpr unsigned STRIPS = 1;
    static constexpr bool BESIDE = false; // the row kernel multiplies two units side by side, so that instructions of one fill pauses of the other: where they, not memory, bind
    static constexpr bool DIGITS = false; // one row of x is multiplied as integers: digits.cu
    struct Head {};
    template <class R> DI static Head head(const R&) { return {}; }
    template <class H> DI static float unit_scale(const H&) { return 1.0f; }
    template <class H> DI static float unit_minimum(const H&) { return 1.0f; }
    // Where four groups are multiplied side by side (`multiply_spread`), lane t has the groups 4 i + t in the order of the steps: what it takes from a row for them.
    struct Own {};
    template <class R> DI static Own own(const R&, int) { return {}; }
    template <class R> DI static float own_minimum(const R&, const Own&, int, int) { return 0.0f; }
    template <class R> DI static float minimum(const R&, const Head&, int, int) { return 0.0f; }
};

// ---- blocks of 32 values: low nibbles the first 16, high nibbles the last ----
template <int BLOCK, int QS> struct Blocks : Plain {
    static constexpr int UNIT = 8 * BLOCK, TAIL = 48;
    DI static constexpr int shift(int step) { return step & 1 ? 4 : 0; }
    static constexpr bool ROTATED = true;
    DI static constexpr int place(int i) { return (i & ~15) + nibble_place(i & 15, ((i >> 5) * BLOCK + QS) & 3); }
    DI static constexpr int unrotated(int i) { return (i & ~15) + nibble_place(i & 15, 0); }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        nibbles<MAGIC>(row.quad(2 * c * BLOCK + QS, t), q[0], q[1]);
        nibbles<MAGIC>(row.quad((2 * c + 1) * BLOCK + QS, t), q[2], q[3]);
    }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R& row, const Head&, int c, int group) { return row.half((2 * c + group) * BLOCK); }
    template <class R> DI static float scale(const R& row, const Head& head, int c, int group) { return low_half(half_scale(row, head, c, group)); }
    template <class R> DI static float own_scale(const R& row, const Plain::Own&, int i, int t) { return low_half(row.two_bytes(BLOCK * t + 4 * BLOCK * i)); }
};
struct Q4_0 : Blocks<18, 2> {
    static constexpr int OFFSET = 8, SLICES = 2;
    static constexpr unsigned STRIPS = 2;
    static constexpr bool FETCHED = true;
};
struct Q4_1 : Blocks<20, 4> {
    static constexpr int SLICES = 2;
    static constexpr bool MINIMUM = true, FETCHED = true;
    static constexpr Plain::Fold FOLD = Plain::ALWAYS;
    template <class R> DI static u32 half_minimum(const R& row, const Head&, int c, int group) { return row.half((2 * c + group) * 20 + 2); }
    template <class R> DI static float minimum(const R& row, const Head& head, int c, int group) { return low_half(half_minimum(row, head, c, group)); }
    template <class R> DI static float own_scale(const R& row, const Own&, int i, int t) { return low_half(row.moved(20 * t).word(80 * i)); }
    template <class R> DI static float own_minimum(const R& row, const Own&, int i, int t) { return high_half(row.moved(20 * t).word(80 * i)); }
    template <class R> DI static void minimums(const R& row, const Head&, int t, u32 (&m)[1]) { m[0] = prmt(row.moved(40 * t).word(0), row.moved(40 * t).word(20), 0x7632); }
};
// A fifth bit each in 32 bits at QH.
template <int BLOCK, int QH, int QS> struct FiveBits : Blocks<BLOCK, QS> {
    using typename Plain::Head;
    DI static constexpr int place(int i) { return (i & ~15) + nibble_place(i & 15, 0); }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        // A product spreads the four bits of a quad, which a byte's lower or upper half has: the first and third to bits 4 and 20, the others one further on.
        const u32 spread = t & 1 ? 0x00004001u : 0x00040010u;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int block = (2 * c + j) * BLOCK;
            u32 fifths, more; // the bytes for the low and the high nibbles
            if constexpr (MAGIC) {
                // The tile kernel is short of loads from shared memory: words, which it needs anyway.
                fifths = prmt(row.holding(block + QH), 0, 0x4440 + R::within(block + QH) + (t >> 1));
                more = prmt(row.holding(block + QH + 2), 0, 0x4440 + R::within(block + QH + 2) + (t >> 1));
            } else fifths = row.start()[block + QH + (t >> 1)], more = row.start()[block + QH + 2 + (t >> 1)];
            const u32 w = row.even_quad(block + QS, t), y = w >> 8, low = fifths * spread, high = more * (spread << 4);
            q[2 * j][0] = and_or(w, 0x000f000fu, and_or(low, 0x00100010u, MAGIC));
            q[2 * j][1] = and_or(y, 0x000f000fu, and_or(low >> 1, 0x00100010u, MAGIC));
            q[2 * j + 1][0] = and_or(w, 0x00f000f0u, and_or(high, 0x01000100u, MAGIC));
            q[2 * j + 1][1] = and_or(y, 0x00f000f0u, and_or(high >> 1, 0x01000100u, MAGIC));
        }
    }
};
struct Q5_0 : FiveBits<22, 2, 6> {
    static constexpr int OFFSET = 16, TAIL = 64;
    static constexpr bool FETCHED = true;
};
struct Q5_1 : FiveBits<24, 4, 8> {
    static constexpr bool MINIMUM = true, FETCHED = true;
    static constexpr Plain::Fold FOLD = Plain::ALWAYS;
    template <class R> DI static u32 half_minimum(const R& row, const Head&, int c, int group) { return row.half((2 * c + group) * 24 + 2); }
    template <class R> DI static float minimum(const R& row, const Head& head, int c, int group) { return low_half(half_minimum(row, head, c, group)); }
    template <class R> DI static float own_scale(const R& row, const Own&, int i, int t) { return low_half(row.moved(24 * t).word(96 * i)); }
    template <class R> DI static float own_minimum(const R& row, const Own&, int i, int t) { return high_half(row.moved(24 * t).word(96 * i)); }
    template <class R> DI static void minimums(const R& row, const Head&, int t, u32 (&m)[1]) { m[0] = prmt(row.moved(48 * t).word(0), row.moved(48 * t).word(24), 0x7632); }
};
struct Q8_0 : Plain {
    static constexpr int UNIT = 272, OFFSET = 128, SLICES = 2, RAGGED_SLICES = 2, TAIL = 80;
    static constexpr bool FETCHED = true;
    DI static constexpr int shift(int) { return 0; }
    // A block that starts two bytes past a word rotates its 32 bytes by two.
    DI static constexpr int place(int i) { return (i & ~31) + (((i & 31) + ((i & 32) ? 0 : 2)) & 31); }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        const u32 first = row.lane(t).word(68 * c), end = row.word(68 * c + 32);
        bytes<MAGIC>(prmt(first, end, t ? 0x3210 : 0x3254) ^ 0x80808080u, q[0]);
        bytes<MAGIC>(row.lane(t).word(68 * c + 16) ^ 0x80808080u, q[1]);
        bytes<MAGIC>(row.lane(t).word(68 * c + 36) ^ 0x80808080u, q[2]);
        bytes<MAGIC>(row.lane(t).word(68 * c + 52) ^ 0x80808080u, q[3]);
    }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R& row, const Head&, int c, int group) { return row.half((2 * c + group) * 34); }
    template <class R> DI static float scale(const R& row, const Head& head, int c, int group) { return low_half(half_scale(row, head, c, group)); }
    template <class R> DI static float own_scale(const R& row, const Own&, int i, int t) { return low_half(row.two_bytes(34 * t + 136 * i)); }
};

// ---- codebooks of 16 ----
template <int BLOCK, int QS> struct Codebook : Plain {
    static constexpr int UNIT = 8 * BLOCK;
    DI static constexpr int shift(int) { return 0; }
    static constexpr bool ROTATED = true;
    DI static constexpr int place(int i) { return (i & ~15) + byte_place(i & 15, ((i >> 5) * BLOCK + QS) & 3); }
    DI static constexpr int unrotated(int i) { return i; }
};
// The codebook of IQ4_NL and IQ4_XS plus 128: 1 24 45 63 79 93 106 118 129 141 153 166 181 197 217 241.
template <u32 MAGIC> DI void codebook_of_16(u32 w, u32 (&low)[2], u32 (&high)[2]) {
    u32 a, b;
    lookup(w, 0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u, a, b);
    low[0] = and_or(a, 0x00ff00ffu, MAGIC), low[1] = and_or(b, 0x00ff00ffu, MAGIC);
    high[0] = prmt(a, MAGIC, 0x5351), high[1] = prmt(b, MAGIC, 0x5351);
}
struct IQ4_NL : Codebook<18, 2> {
    static constexpr bool BESIDE = true;
    static constexpr int OFFSET = 128, TAIL = 48;
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
#pragma unroll
        for (int j = 0; j < 2; j++) codebook_of_16<MAGIC>(row.quad((2 * c + j) * 18 + 2, t), q[2 * j], q[2 * j + 1]);
    }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R& row, const Head&, int c, int group) { return row.half((2 * c + group) * 18); }
    template <class R> DI static float scale(const R& row, const Head& head, int c, int group) { return low_half(half_scale(row, head, c, group)); }
    template <class R> DI static float own_scale(const R& row, const Own&, int i, int t) { return low_half(row.two_bytes(18 * t + 72 * i)); }
};
struct IQ4_XS : Codebook<16, 8> {
    static constexpr bool BESIDE = true;
    static constexpr int UNIT = 136, OFFSET = 128;
    static constexpr bool UNIT_SCALE = true;
    struct Head { u32 d, scales; };
    template <class R> DI static Head head(const R& row) { return {row.word(0), row.word(4)}; }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
#pragma unroll
        for (int j = 0; j < 2; j++) codebook_of_16<MAGIC>(row.quad((2 * c + j) * 16 + 8, t), q[2 * j], q[2 * j + 1]);
    }
    DI static u32 pair(const Head& head, int c) {
        const u32 low = head.scales >> 8 * c, high = head.d >> (16 + 4 * c);
        return (low & 0x0f) | (low << 12 & 0x0f0000) | (high << 4 & 0x30) | (high << 18 & 0x300000);
    }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R&, const Head& head, int c, int group) { return spread(hmul2(integers(pair(head, c) | HALF_1024, 32), spread(head.d, 0)), group); }
    template <class R> DI static float scale(const R&, const Head& head, int c, int group) { return subnormal(hadd2(pair(head, c), minus_subnormals(32)), group); }
    template <class H> DI static float unit_scale(const H& head) { return low_half(head.d) / SUBNORMAL; }
    struct Own { u32 d, scales; }; // those of the groups t and 4 + t
    template <class R> DI static Own own(const R& row, int t) {
        const u32 d = row.word(0), low = row.word(4) >> 4 * t, high = d >> (16 + 2 * t);
        return {d, hadd2((low & 0x000f000fu) | (high << 4 & 0x30) | (high << 12 & 0x300000), minus_subnormals(32))};
    }
    template <class R> DI static float own_scale(const R&, const Own& own, int i, int) { return subnormal(own.scales, i); }
};
// Shifts left where the multipliers are idle.
DI u32 times(u32 w, u32 factor) { return w * factor; }
// A nibble's sign, exponent and fraction as those of a half: E2M1 x 2^-14, subnormal where E2M1 is.
struct MXFP4 : Plain {
    static constexpr int UNIT = 136, TAIL = 48;
    static constexpr float QUANTUM = 1.0f / 32768.0f; // 2^-15, as scales are halved
    static constexpr bool TRUE_HALVES = true, RANGED = true, ROLLED = false, FETCHED = true;
    // Weights are kept in halves as they are times 2^(127 - reference - HEADROOM), E2M1 times at most 2^MOST; exponents above the reference
    // by more than HEADROOM + MOST need another one.
    static constexpr int HEADROOM = 6, MOST = 1;
    DI static constexpr int shift(int) { return 0; }
    static constexpr bool ROTATED = true;
    DI static constexpr int place(int i) { return (i & ~15) + nibble_place(i & 15, ((i >> 5) * 17 + 1) & 3); }
    DI static constexpr int unrotated(int i) { return (i & ~15) + nibble_place(i & 15, 0); }
    // The exponents of two groups of 32, a lane's own of a unit, and the largest of a quad of lanes.
    DI static void own_exponents(const u8* groups, int (&e)[2]) { e[0] = groups[0], e[1] = groups[17]; }
    DI static int largest_exponent(const int (&own)[2]) {
        int e = max(own[0], own[1]);
        e = max(e, __shfl_xor_sync(~0u, e, 1));
        return max(e, __shfl_xor_sync(~0u, e, 2));
    }
    // What makes weights of the halves of `bits`, for a lane's own groups.
    DI static u32 ranged_scales(const int (&own)[2], int reference) {
        // 2^(e - reference - HEADROOM + 14), but not less than 2^-30, which is no half.
        auto scale = [&](int e) { return __int_as_float(max((e << 23) + (127 + 14 - HEADROOM - reference) * 0x00800000, (127 - 30) << 23)); };
        return pack_halves(scale(own[0]), scale(own[1]));
    }
    // Undoes a reference: times 2^(HEADROOM + 1) this is its weights' power of two.
    DI static float of_reference(int reference) { return __int_as_float(max(reference * 0x00800000 - 0x00800000, reference * 0x00200000 + 0x00200000)); }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            // The high bytes of the halves of four nibbles at once; the low bytes are zero.
            const u32 w = row.quad((2 * c + j) * 17 + 1, t);
            const u32 low = and_or(w + w, 0x0e0e0e0eu, times(w & 0x08080808u, 16)), high = and_or(w >> 3, 0x0e0e0e0eu, w & 0x80808080u);
            q[2 * j][0] = prmt(low, 0, 0x2404), q[2 * j][1] = prmt(low, 0, 0x3414);
            q[2 * j + 1][0] = prmt(high, 0, 0x2404), q[2 * j + 1][1] = prmt(high, 0, 0x3414);
        }
    }
    // Half of 2^(e - 127): e = 255 stays finite, e = 0 and 1 are subnormal.
    template <class R> DI static float scale(const R& row, const Head&, int c, int group) {
        // As of_reference, by products: what the compiler knows to be a power of two it makes a shift, which takes the masks' turns. Launches are one block high. (A constant in memory
        // of the module's own makes each launch some 0.4 us longer.)
        const int e = row.start()[(2 * c + group) * 17], one = gridDim.y << 23;
        return __int_as_float(max(e * one - 0x00800000, e * (one >> 2) + 0x00200000));
    }
    template <class R> DI static float own_scale(const R& row, const Own&, int i, int t) { return of_reference(row.start()[17 * t + 68 * i]); }
};

// ---- MLX affine: packed values in one array, scales and biases in two more; GROUP values share them ----
template <int BITS, int GROUP, int SCALE_BYTES, bool BFLOAT> struct Affine : Plain {
    static constexpr int UNIT = 32 * BITS, LIFT = 6, SIDE = 256 / GROUP * SCALE_BYTES; // bytes of scales in a unit
    static constexpr int SUB = GROUP < 64 ? 32 : 64;
    static constexpr bool MINIMUM = true, AFFINE = true, HALVES = true;
    static constexpr int PAIRS = 128 / GROUP;
    struct Head { u32 scales[PAIRS], biases[PAIRS]; }; // times 2^LIFT, pairs of halves
    template <class R> DI static Head head(const R& row) {
        Head head;
        pairs(row.scales, head.scales), pairs(row.biases, head.biases);
        return head;
    }
    DI static void pairs(const u8* at, u32 (&to)[PAIRS]) {
        constexpr float LIFTED = (float)(1 << LIFT);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if constexpr (SCALE_BYTES == 4) {
                const float2 both = *(const float2*)(at + 8 * i);
                to[i] = pack_halves(both.x * LIFTED, both.y * LIFTED);
            } else {
                u32 both;
                if constexpr (PAIRS == 1) both = *(const u32*)at;
                else {
                    const uint2 two = *(const uint2*)(at + 8 * (i / 2));
                    both = i & 1 ? two.y : two.x;
                }
                if constexpr (BFLOAT) to[i] = pack_halves(__uint_as_float(both << 16) * LIFTED, __uint_as_float(both & 0xffff0000u) * LIFTED);
                else to[i] = pack_halves(low_half(both) * LIFTED, high_half(both) * LIFTED);
            }
        }
    }
    DI static constexpr int group_of(int c, int group) { return (64 * c + SUB * group) / GROUP; }
    template <class R> DI static u32 half_scale(const R&, const Head& head, int c, int group) { return spread(head.scales[group_of(c, group) / 2], group_of(c, group) & 1); }
    template <class R> DI static u32 half_minimum(const R&, const Head& head, int c, int group) { return spread(head.biases[group_of(c, group) / 2], group_of(c, group) & 1); }
    DI static float read(const u8* at) {
        if constexpr (SCALE_BYTES == 4) return *(const float*)at;
        else if constexpr (BFLOAT) return __uint_as_float((u32)*(const u16*)at << 16);
        else return low_half(*(const u16*)at);
    }
    template <class R> DI static float scale(const R& row, const Head&, int c, int group) { return read(row.scales + (64 * c + SUB * group) / GROUP * SCALE_BYTES); }
    template <class R> DI static float minimum(const R& row, const Head&, int c, int group) { return read(row.biases + (64 * c + SUB * group) / GROUP * SCALE_BYTES); }
    DI static u32 own_at(int i, int t) { return (SUB * t / GROUP + 4 * SUB / GROUP * i) * SCALE_BYTES; }
    template <class R> DI static float own_scale(const R& row, const Plain::Own&, int i, int t) { return read(row.scales + own_at(i, t)); }
    template <class R> DI static float own_minimum(const R& row, const Plain::Own&, int i, int t) { return read(row.biases + own_at(i, t)); }
};
template <int GROUP, int SCALE_BYTES, bool BFLOAT> struct Affine4 : Affine<4, GROUP, SCALE_BYTES, BFLOAT> {
    static constexpr bool PAIRED = true;
    static constexpr unsigned STRIPS = 2;
    using typename Affine<4, GROUP, SCALE_BYTES, BFLOAT>::Head;
    DI static constexpr int shift(int step) { return step & 1 ? 4 : 0; }
    // Eight consecutive values in a lane's word: even ones in the low nibbles, odd ones in the high.
    DI static constexpr int place(int i) { return (i & ~31) + 16 * (i & 1) + (i >> 3 & 3) * 4 + swap_middle(i >> 1 & 3); }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        nibbles<MAGIC>(row.lane(t).word(32 * c), q[0], q[1]);
        nibbles<MAGIC>(row.lane(t).word(32 * c + 16), q[2], q[3]);
    }
};
template <int GROUP, int SCALE_BYTES, bool BFLOAT> struct Affine8 : Affine<8, GROUP, SCALE_BYTES, BFLOAT> {
    static constexpr int SLICES = 2;
    using typename Affine<8, GROUP, SCALE_BYTES, BFLOAT>::Head;
    DI static constexpr int shift(int) { return 0; }
    DI static constexpr int place(int i) { return i; }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
#pragma unroll
        for (int s = 0; s < 4; s++) bytes<MAGIC>(row.lane(t).word(64 * c + 16 * s), q[s]);
    }
};

// A format whose rows start anywhere.
template <class F> struct Unrotated : F {
    DI static constexpr int place(int i) {
        if constexpr (F::ROTATED) return F::unrotated(i);
        else return F::place(i);
    }
};
template <class F, bool ANYWHERE> struct Started { using Format = F; };
template <class F> struct Started<F, true> { using Format = Unrotated<F>; };
