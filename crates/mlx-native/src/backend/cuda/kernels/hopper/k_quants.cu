// The K-quants: blocks of 256 values, a unit each. formats.cu says what a format is.

template <int QS> struct SixBitScales : Plain { // Q4_K and Q5_K
    static constexpr bool MINIMUM = true, UNIT_SCALE = true;
    struct Head { u32 d, scales[2], minimums[2]; };
    template <class R> DI static void minimums(const R&, const Head& head, int t, u32 (&m)[1]) { m[0] = prmt(head.minimums[0], head.minimums[1], 0x0100 + 0x0202 * t) & 0x00ff00ffu; }
    DI static constexpr int shift(int step) { return step & 2 ? 4 : 0; }
    DI static constexpr int place(int i) { return (i & ~15) + nibble_place(i & 15, 0); }
    template <class R> DI static Head head(const R& row) {
        u32 a = row.word(4), b = row.word(8), c = row.word(12);
        return {row.word(0), {a & 0x3f3f3f3fu, and_or(a >> 2, 0x30303030u, c & 0x0f0f0f0fu)}, {b & 0x3f3f3f3fu, and_or(b >> 2, 0x30303030u, c >> 4 & 0x0f0f0f0fu)}};
    }
    // Two of four bytes as integers, above the bits of `high`.
    DI static u32 pair(u32 four, int c, u32 high) { return prmt(four, high, c & 1 ? 0x5352 : 0x5150); }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R&, const Head& head, int c, int group) { return spread(hmul2(integers(pair(head.scales[c >> 1], c, HALF_1024), 0), spread(head.d, 0)), group); }
    template <class R> DI static u32 half_minimum(const R&, const Head& head, int c, int group) {
        return spread(hmul2(integers(pair(head.minimums[c >> 1], c, HALF_1024), 0), spread(head.d ^ 0x80000000u, 1)), group);
    }
    template <class R> DI static float scale(const R&, const Head& head, int c, int group) { return subnormal(pair(head.scales[c >> 1], c, 0), group); }
    template <class R> DI static float minimum(const R&, const Head& head, int c, int group) { return subnormal(pair(head.minimums[c >> 1], c, 0), group); }
    template <class H> DI static float unit_scale(const H& head) { return low_half(head.d) / SUBNORMAL; }
    template <class H> DI static float unit_minimum(const H& head) { return -high_half(head.d) / SUBNORMAL; }
    struct Own { u32 d, pairs[2]; }; // scale and minimum of the groups t and 4 + t
    template <class R> DI static Own own(const R& row, int t) {
        const u8* from = row.start() + t;
        const u32 both = from[4] | from[8] << 16;
        return {row.word(0), {both & 0x003f003fu, and_or(both >> 2, 0x00300030u, from[12] * 0x1001u & 0x000f000fu)}};
    }
    template <class R> DI static float own_scale(const R&, const Own& own, int i, int) { return low_half(own.pairs[i]); }
    template <class R> DI static float own_minimum(const R&, const Own& own, int i, int) { return high_half(own.pairs[i]); }
};
struct Q4_K : SixBitScales<16> {
    static constexpr int UNIT = 144;
    static constexpr bool ROLLED = false, FETCHED = true;
    static constexpr unsigned STRIPS = 2;
    static constexpr Fold FOLD = WHEN_PREPARED;
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        nibbles<MAGIC>(row.lane(t).word(16 + 32 * c), q[0], q[2]);
        nibbles<MAGIC>(row.lane(t).word(32 + 32 * c), q[1], q[3]);
    }
};
// x shifted left by n, right for negative n.
DI u32 shifted(u32 x, int n) { return n >= 0 ? x << n : x >> -n; }
struct Q5_K : SixBitScales<48> {
    static constexpr int UNIT = 176;
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 w = row.lane(t).word(48 + 32 * c + 16 * j), h = row.lane(t).word(16 + 16 * j), y = w >> 8;
            q[j][0] = and_or(w, 0x000f000fu, and_or(shifted(h, 4 - 2 * c), 0x00100010u, MAGIC));
            q[j][1] = and_or(y, 0x000f000fu, and_or(shifted(h, -4 - 2 * c), 0x00100010u, MAGIC));
            q[2 + j][0] = and_or(w, 0x00f000f0u, and_or(shifted(h, 7 - 2 * c), 0x01000100u, MAGIC));
            q[2 + j][1] = and_or(y, 0x00f000f0u, and_or(shifted(h, -1 - 2 * c), 0x01000100u, MAGIC));
        }
    }
};
template <int SIZE> struct Planes : Plain { // fields of values 32 or 64 apart share bytes; a scale for 16 values
    static constexpr int UNIT = SIZE, SUB = 16;
    static constexpr bool UNIT_SCALE = true;
    DI static constexpr int place(int i) { return 16 * plane_step(i >> 4) + nibble_place(i & 15, 0); }
    struct Own { u32 d, scales[2]; }; // those of the steps t, 4 + t and 8 + t, 12 + t
    template <class R> DI static float own_scale(const R&, const Own& own, int i, int) { return subnormal(own.scales[i >> 1], i & 1); }
    // Pairs of groups for digits.cu: the groups 2 s + c and 8 + 2 s + c, fields s of the same bytes of a half each. Weights of all fields are brought to 1 / DIGIT_UNIT.
    static constexpr bool DIGITS = true;
    static constexpr float DIGIT_UNIT = 1.f / 64;
    struct OwnDigits { u32 d, scales[2]; }; // the scales of a pair's first or second groups, bytes
    DI static constexpr int digit_place(int i) { return (i >> 4 & 7) * 32 + (i >> 7) * 16 + (i & 15); }
    // The two bytes at `offset` that are those steps', in the halves of a word.
    template <class R> DI static u32 apart(const R& row, u32 offset, int t) { return prmt(row.two_bytes(offset + 2 * t), 0, 0x4140); }
};
struct Q2_K : Planes<84> {
    static constexpr bool ROLLED = false;
    static constexpr bool MINIMUM = true;
    static constexpr Fold FOLD = ALWAYS;
    struct Head { u32 d; };
    DI static constexpr int shift(int step) { return 2 * (step & 3); }
    template <class R> DI static Head head(const R& row) { return {row.word(80)}; }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        u32 w = row.lane(t).word(16 + 16 * c), y = w >> 8;
#pragma unroll
        for (int s = 0; s < 4; s++) q[s][0] = and_or(w, 0x00030003u << 2 * s, MAGIC), q[s][1] = and_or(y, 0x00030003u << 2 * s, MAGIC);
    }
    template <class R> DI static u32 pair(const R& row, int c, int s, int shift, u32 high) { return and_or(row.word(4 * ((c & 2) + (s >> 1))) >> (8 * (c & 1) + shift), 0x000f000fu, high); }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R& row, const Head& head, int c, int s) { return spread(hmul2(integers(pair(row, c, s, 0, HALF_1024), 0), spread(head.d, 0)), s & 1); }
    template <class R> DI static u32 half_minimum(const R& row, const Head& head, int c, int s) {
        return spread(hmul2(integers(pair(row, c, s, 4, HALF_1024), 0), spread(head.d ^ 0x80000000u, 1)), s & 1);
    }
    template <class R> DI static float scale(const R& row, const Head&, int c, int s) { return subnormal(pair(row, c, s, 0, 0), s & 1); }
    template <class R> DI static float minimum(const R& row, const Head&, int c, int s) { return subnormal(pair(row, c, s, 4, 0), s & 1); }
    template <class R> DI static void minimums(const R& row, const Head&, int t, u32 (&m)[2]) {
        const u32 w = row.lane(t).word(0);
        m[0] = w >> 4 & 0x000f000fu, m[1] = w >> 12 & 0x000f000fu;
    }
    template <class R> DI static Own own(const R& row, int t) { return {row.word(80), {apart(row, 0, t) & 0x000f000fu, apart(row, 8, t) & 0x000f000fu}}; }
    DI static constexpr int digit_raise(int pair) { return pair > 0 && pair % 2 == 0 ? 4 : 1; }
    template <class R> DI static void digits(const R& row, int t, u32 (&q)[8][2]) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 w = row.lane(t).word(16 + 16 * c);
#pragma unroll
            for (int s = 0; s < 4; s++) q[2 * s + (c & 1)][c >> 1] = w & 0x03030303u << 2 * s;
        }
    }
    template <class R> DI static OwnDigits own_digits(const R& row, int half) {
        const R own = row.moved(8 * half);
        return {row.word(80), {own.word(0) & 0x0f0f0f0fu, own.word(4) & 0x0f0f0f0fu}};
    }
    DI static int digit_scale(const OwnDigits& own, int pair) { return prmt(own.scales[pair >> 2], 0, 0x4440 + (pair & 3)); }
    template <class H> DI static float unit_scale(const H& head) { return low_half(head.d) / SUBNORMAL; }
    template <class H> DI static float unit_minimum(const H& head) { return -high_half(head.d) / SUBNORMAL; }
};
struct Q3_K : Planes<110> {
    static constexpr bool ROLLED = false;
    static constexpr int OFFSET = 4;
    static constexpr bool HIGH_APART = true;
    struct Head { u32 d, scales[4]; };
    DI static constexpr int shift(int step) { return 2 * (step & 3); }
    template <class R> DI static Head head(const R& row) {
        u32 a = row.word(96), b = row.word(100), top = row.word(104);
        return {row.half(108),
                {and_or(top << 4, 0x30303030u, a & 0x0f0f0f0fu), and_or(top << 2, 0x30303030u, b & 0x0f0f0f0fu), and_or(top, 0x30303030u, a >> 4 & 0x0f0f0f0fu),
                 and_or(top >> 2, 0x30303030u, b >> 4 & 0x0f0f0f0fu)}};
    }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        u32 w = row.lane(t).word(32 + 16 * c), y = w >> 8, h = row.lane(t).word(16 * (c & 1));
#pragma unroll
        for (int s = 0; s < 4; s++) {
            const int left = s + 2 - 4 * (c >> 1);
            q[s][0] = and_or(w, 0x00030003u << 2 * s, and_or(shifted(h, left), 0x00040004u << 2 * s, MAGIC));
            q[s][1] = and_or(y, 0x00030003u << 2 * s, and_or(shifted(h, left - 8), 0x00040004u << 2 * s, MAGIC));
        }
    }
    DI static u32 pair(const Head& head, int c, int s, u32 high) { return and_or(head.scales[(c & 2) + (s >> 1)] >> 8 * (c & 1), 0x00ff00ffu, high); }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R&, const Head& head, int c, int s) { return spread(hmul2(integers(pair(head, c, s, HALF_1024), 32), head.d), s & 1); }
    template <class R> DI static float scale(const R&, const Head& head, int c, int s) { return subnormal(hadd2(pair(head, c, s, 0), minus_subnormals(32)), s & 1); }
    template <class H> DI static float unit_scale(const H& head) { return low_half(head.d) / SUBNORMAL; }
    // A value's two low bits, and its high bit as 2^(4 (c / 2) + step), which `high_factor` makes as much as 4 times the step's scale for the lane that has the step.
    template <class R> DI static void low_bits(const R& row, int c, int t, u32 (&q)[4][2]) {
        const u32 w = row.lane(t).word(32 + 16 * c), y = w >> 8;
#pragma unroll
        for (int s = 0; s < 4; s++) q[s][0] = w & 0x00030003u << 2 * s, q[s][1] = y & 0x00030003u << 2 * s;
    }
    template <class R> DI static void high_bits(const R& row, int c, int t, u32 (&q)[4][2]) {
        const u32 w = row.lane(t).word(16 * (c & 1)), y = w >> 8;
#pragma unroll
        for (int s = 0; s < 4; s++) q[s][0] = w & 0x00010001u << (4 * (c >> 1) + s), q[s][1] = y & 0x00010001u << (4 * (c >> 1) + s);
    }
    // Three bits of every byte: a product brings the high bits of two fields to the places above their low ones. Fields 0 and 1 are low nibbles, 2 and 3 high ones.
    DI static constexpr int digit_raise(int pair) { return pair == 4 ? 16 : 1; }
    DI static constexpr int digit_offset(int pair) { return pair < 4 ? -OFFSET : -16 * OFFSET; }
    template <class R> DI static void digits(const R& row, int t, u32 (&q)[8][2]) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 w = row.lane(t).word(32 + 16 * c), h = row.lane(t).word(16 * (c & 1)) >> 4 * (c >> 1), low = 0x33333333u;
            const u32 even = (w & low) | ((h & 0x05050505u) * 20 & ~low), odd = (w >> 2 & low) | ((h & 0x0a0a0a0au) * 10 & ~low);
            q[c & 1][c >> 1] = even & 0x07070707u, q[2 + (c & 1)][c >> 1] = odd & 0x07070707u;
            q[4 + (c & 1)][c >> 1] = even & 0x70707070u, q[6 + (c & 1)][c >> 1] = odd & 0x70707070u;
        }
    }
    // Four times the scale less 32.
    template <class R> DI static OwnDigits own_digits(const R& row, int half) {
        const u32 a = row.word(96) >> 4 * half, b = row.word(100) >> 4 * half, top = row.word(104) >> 4 * half ^ 0xaaaaaaaau;
        return {row.holding(108) >> 8 * R::within(108), {and_or(top << 6, 0xc0c0c0c0u, a << 2 & 0x3c3c3c3cu), and_or(top << 4, 0xc0c0c0c0u, b << 2 & 0x3c3c3c3cu)}};
    }
    DI static int digit_scale(const OwnDigits& own, int pair) { return prmt(own.scales[pair >> 2], 0, 0x8880 + 0x1111 * (pair & 3)); }
    DI static float high_factor(int c, int t) { return __uint_as_float((u32)(127 + 2 - 4 * (c >> 1) + t) << 23); }
    template <class R> DI static Own own(const R& row, int t) {
        const u32 low = apart(row, 96, t), high = prmt(row.two_bytes(104 + 2 * (t & 1)), 0, 0x4140) >> (t & 2);
        return {row.half(108),
                {hadd2(and_or(high << 4, 0x00300030u, low & 0x000f000fu), minus_subnormals(32)), hadd2(and_or(high, 0x00300030u, low >> 4 & 0x000f000fu), minus_subnormals(32))}};
    }
};
struct Q6_K : Planes<210> {
    static constexpr bool DIGITS = false;
    static constexpr int OFFSET = 32;
    struct Head { u32 d; };
    DI static constexpr int shift(int step) { return step & 2 ? 4 : 0; }
    template <class R> DI static Head head(const R& row) { return {row.half(208)}; }
    template <u32 MAGIC, class R> DI static void bits(const R& row, const Head&, int c, int t, u32 (&q)[4][2]) {
        u32 h = row.lane(t).word(128 + 16 * c);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 w = row.lane(t).word(32 * (c & 2) + 32 * j + 16 * (c & 1)), y = w >> 8, even = h << (4 - 2 * j), odd = h >> (4 + 2 * j);
            q[j][0] = and_or(w, 0x000f000fu, and_or(even, 0x00300030u, MAGIC));
            q[j][1] = and_or(y, 0x000f000fu, and_or(odd, 0x00300030u, MAGIC));
            q[2 + j][0] = and_or(w, 0x00f000f0u, and_or(even, 0x03000300u, MAGIC));
            q[2 + j][1] = and_or(y, 0x00f000f0u, and_or(odd, 0x03000300u, MAGIC));
        }
    }
    template <class R> DI static u32 pair(const R& row, int c, int s, u32 high) { return and_or((row.word(192 + 4 * ((c & 2) + (s >> 1))) ^ 0x80808080u) >> 8 * (c & 1), 0x00ff00ffu, high); }
    static constexpr bool HALVES = true;
    template <class R> DI static u32 half_scale(const R& row, const Head& head, int c, int s) { return spread(hmul2(integers(pair(row, c, s, HALF_1024), 128), head.d), s & 1); }
    template <class R> DI static float scale(const R& row, const Head&, int c, int s) { return subnormal(hadd2(pair(row, c, s, 0), minus_subnormals(128)), s & 1); }
    template <class H> DI static float unit_scale(const H& head) { return low_half(head.d) / SUBNORMAL; }
    template <class R> DI static Own own(const R& row, int t) {
        return {row.half(208), {hadd2(apart(row, 192, t) ^ 0x00800080u, minus_subnormals(128)), hadd2(apart(row, 200, t) ^ 0x00800080u, minus_subnormals(128))}};
    }
};
