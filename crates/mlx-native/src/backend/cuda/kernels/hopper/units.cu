// Units of weight rows times a few rows of x: the layout of a block's shared memory, and one unit's product.

// d = a b + c.
DI void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, float c0, float c1, float c2, float c3) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
}

constexpr int WARPS = 16, SHARED_LIMIT = 232448, MOST_STAGES = 12, MOST_SUMS = 4;

DI constexpr int up(int x, int to) { return (x + to - 1) / to * to; }
// A pitch of at least `bytes` that is 16 more than a multiple of 32: eight rows of four words fall into different banks.
DI constexpr int pitch_of(int bytes) { return up(bytes, 16) % 32 ? up(bytes, 16) : up(bytes, 16) + 16; }
template <class F> DI constexpr int side_of() {
    if constexpr (F::AFFINE) return F::SIDE;
    else return 0;
}
// What lies behind the stages in shared memory.
template <class F, int KU> struct MatVecLayout {
    static constexpr int GROUPS = 256 / F::SUB, INVERSE = (F::OFFSET || F::MINIMUM) ? KU * GROUPS * 32 : 0; // bytes of a warp's sums of x
    static constexpr int TABLE = INVERSE + KU * 32; // with what undoes the scaling of eight columns
    static constexpr int FULL = 0, EMPTY = 8 * MOST_STAGES, DRAINED = 2 * EMPTY, FILLED = DRAINED + 8 * MOST_SUMS, RING = FILLED + 8 * MOST_SUMS, SHARES = RING + 64;
    static constexpr int TABLES = SHARES + 64, SUMS = TABLES + WARPS * TABLE;
};

// How a launch's columns are used: a single row of x, whose groups lie side by side, up to four rows as good as f32, or up to eight as halves.
enum Columns { ONE_ROW, FOUR_ROWS, EIGHT_ROWS };
// Floats of a warp's sums: of 16 rows and one, four or eight columns.
DI constexpr int strip_of(Columns columns) { return columns == ONE_ROW ? 16 : columns == FOUR_ROWS ? 64 : 128; }
// Whether the minimums of a unit are multiplied at once.
template <class F, Columns COLUMNS>
constexpr bool FOLDED = COLUMNS == ONE_ROW ? F::FOLD == Plain::ALWAYS && F::SUB == 16 : F::FOLD == Plain::ALWAYS || (COLUMNS == EIGHT_ROWS && F::FOLD == Plain::WHEN_PREPARED);
// Groups side by side in the columns: the one of a step, and a step's place among the four of a unit that a lane has operands for; and those steps.
template <class F> DI constexpr int beside(int step) { return step * 16 / F::SUB & 3; }
template <class F> DI constexpr int own_place(int step) {
    constexpr int STEPS = F::SUB / 16; // of a group
    return step / (4 * STEPS) * STEPS + step % STEPS;
}
template <class F> DI int own_step(int group, int place) {
    constexpr int STEPS = F::SUB / 16;
    return place / STEPS * 4 * STEPS + group * STEPS + place % STEPS;
}
// Whether this lane has the columns of a group.
DI bool has_columns(int group) { return (threadIdx.x >> 3 & 3) == group; }
// Ones, as pairs of halves, where it has them.
DI void own_columns(u32 (&own)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) own[i] = has_columns(i) ? 0x3c003c00u : 0;
}
// Operands for `multiply_spread` in registers: those of the steps whose group has this lane's columns. `own` makes zeros of them for the others, at each use.
template <class F> struct HeldOperands {
    const u32 (&held)[4][2], (&own)[4];
    struct Chunk {
        const HeldOperands& all;
        int chunk;
        DI u32 operator()(int step, int half) const { return hmul2(all.held[own_place<F>(4 * chunk + step)][half], all.own[beside<F>(4 * chunk + step)]); }
    };
    DI Chunk operator()(int chunk) const { return {*this, chunk}; }
};
// The same, loaded for a chunk.
struct LoadedChunk {
    u32 x[4][2];
    DI u32 operator()(int step, int half) const { return x[step][half]; }
};

// sum += factors x d, of two rows and two columns.
DI void scale_and_add(float (&sum)[4], float f0, float f1, float2 columns, const float (&d)[4]) {
    sum[0] = fmaf(columns.x, f0 * d[0], sum[0]), sum[1] = fmaf(columns.y, f0 * d[1], sum[1]), sum[2] = fmaf(columns.x, f1 * d[2], sum[2]), sum[3] = fmaf(columns.y, f1 * d[3], sum[3]);
}
// One unit of 16 rows: acc += rows x operands. `table` is where the sums of x over the unit's groups are, `valid` how many values the unit has. Where columns are SCALED,
// `inverse` is where what undoes that is.
template <class F, int SHIFT, bool TAIL, bool FOLD, bool SCALED>
DI void multiply_unit(const Row<SHIFT>& top, const Row<SHIFT>& bottom, int t, const u32 (&b)[16][2], u32 table, u32 inverse, int valid, float (&acc)[4]) {
    constexpr bool APART = F::UNIT_SCALE || SCALED; // sums of the unit apart from those before
    auto columns = [&]() { return SCALED ? *(const float2*)(smem + inverse + 8 * t) : make_float2(1.f, 1.f); };
    const typename F::Head head0 = F::head(top), head1 = F::head(bottom);
    float part[4] = {0.f, 0.f, 0.f, 0.f}, low[4] = {0.f, 0.f, 0.f, 0.f};
    if constexpr (FOLD) {
        constexpr int PAIRS = F::SUB == 16 ? 2 : 1;
        u32 m0[PAIRS], m1[PAIRS];
        F::minimums(top, head0, t, m0), F::minimums(bottom, head1, t, m1);
        if (TAIL && PAIRS == 1) {
            const u32 there = valid > 64 * t + 32 ? ~0u : valid > 64 * t ? 0xffffu : 0;
            m0[0] &= there, m1[0] &= there;
        }
        if constexpr (PAIRS == 1) {
            const uint2 s = *(const uint2*)(smem + table + 8 * (threadIdx.x & 31));
            mma(low, m0[0], m1[0], m0[0], m1[0], s.x, s.y, 0.f, 0.f, 0.f, 0.f);
        } else {
            const uint4 s = *(const uint4*)(smem + table + 16 * (threadIdx.x & 31));
            mma(low, m0[0], m1[0], m0[1], m1[1], s.x, s.y, 0.f, 0.f, 0.f, 0.f);
            mma(low, m0[0], m1[0], m0[1], m1[1], s.z, s.w, low[0], low[1], low[2], low[3]);
        }
        scale_and_add(F::UNIT_SCALE || !APART ? acc : part, F::unit_minimum(head0) * F::QUANTUM, F::unit_minimum(head1) * F::QUANTUM, F::UNIT_SCALE ? columns() : make_float2(1.f, 1.f), low);
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        u32 q0[4][2], q1[4][2];
        F::template bits<0>(top, head0, c, t, q0);
        F::template bits<0>(bottom, head1, c, t, q1);
        constexpr int STEPS = F::SUB / 16;
#pragma unroll
        for (int j = 0; j < 4 / STEPS; j++) {
            float sums[2] = {0.f, 0.f};
            if constexpr (F::OFFSET != 0 || (F::MINIMUM && !FOLD)) {
                const float2 s = *(const float2*)(smem + table + (c * (4 / STEPS) + j) * 32 + 8 * t);
                sums[0] = s.x, sums[1] = s.y;
            }
            const float x = F::OFFSET ? sums[0] : 0.f, y = F::OFFSET ? sums[1] : 0.f;
            float d[4];
            mma(d, q0[j * STEPS][0], q1[j * STEPS][0], q0[j * STEPS][1], q1[j * STEPS][1], b[4 * c + j * STEPS][0], b[4 * c + j * STEPS][1], x, y, x, y);
#pragma unroll
            for (int s = j * STEPS + 1; s < (j + 1) * STEPS; s++) mma(d, q0[s][0], q1[s][0], q0[s][1], q1[s][1], b[4 * c + s][0], b[4 * c + s][1], d[0], d[1], d[2], d[3]);
            float s0 = F::scale(top, head0, c, j), s1 = F::scale(bottom, head1, c, j);
            if (TAIL && 64 * c + F::SUB * j >= valid) s0 = s1 = 0.f;
            float* sum = APART ? part : acc;
            sum[0] = fmaf(s0, d[0], sum[0]), sum[1] = fmaf(s0, d[1], sum[1]), sum[2] = fmaf(s1, d[2], sum[2]), sum[3] = fmaf(s1, d[3], sum[3]);
            if constexpr (F::MINIMUM && !FOLD) {
                float m0 = F::minimum(top, head0, c, j), m1 = F::minimum(bottom, head1, c, j);
                if (TAIL && 64 * c + F::SUB * j >= valid) m0 = m1 = 0.f;
                float* minimums = F::UNIT_SCALE ? low : sum;
                minimums[0] = fmaf(m0, sums[0], minimums[0]), minimums[1] = fmaf(m0, sums[1], minimums[1]);
                minimums[2] = fmaf(m1, sums[0], minimums[2]), minimums[3] = fmaf(m1, sums[1], minimums[3]);
            }
        }
    }
    if constexpr (APART) {
        scale_and_add(acc, F::unit_scale(head0), F::unit_scale(head1), columns(), part);
        if constexpr (F::UNIT_SCALE && F::MINIMUM && !FOLD) scale_and_add(acc, F::unit_minimum(head0), F::unit_minimum(head1), columns(), low);
    }
}

// The same where only two columns are wanted: four groups of k lie side by side, each with columns of its own, so that every lane scales the sums of one of them. Lane t has
// acc of the groups 4 i + t, and what is wanted is the sum over the four lanes. operands(c) has the right operands of the four steps of chunk c: zeros where a lane's column
// belongs to another group. sums(i) gives the sums of x over group 4 i + t for both columns, fold() what fold_sums has made of them. Only the first so many steps are there.
template <class F, int SHIFT, bool TAIL, int STEPS = 16, class Operands, class Sums, class Fold>
DI void multiply_spread(const Row<SHIFT>& top, const Row<SHIFT>& bottom, int t, const Operands& operands, const Sums& sums, const Fold& fold, int valid, float (&acc)[4]) {
    constexpr bool FOLD = FOLDED<F, ONE_ROW>;
    constexpr int CHAINS = 64 / F::SUB, LENGTH = 16 / CHAINS;
    const typename F::Head none{};
    const auto own0 = F::own(top, t), own1 = F::own(bottom, t);
    float part[4] = {0.f, 0.f, 0.f, 0.f}, low[4] = {0.f, 0.f, 0.f, 0.f};
    auto multiply = [&](float (&d)[4], const u32 (&q0)[4][2], const u32 (&q1)[4][2], const auto& x, int c) {
#pragma unroll
        for (int s = 0; s < 4 && 4 * c + s < STEPS; s++) mma(d, q0[s][0], q1[s][0], q0[s][1], q1[s][1], x(s, 0), x(s, 1), d[0], d[1], d[2], d[3]);
    };
    if constexpr (FOLD) {
        u32 m0[2], m1[2];
        F::minimums(top, none, t, m0), F::minimums(bottom, none, t, m1);
        const uint4 s = fold();
        mma(low, m0[0], m1[0], m0[1], m1[1], s.x, s.y, 0.f, 0.f, 0.f, 0.f);
        mma(low, m0[0], m1[0], m0[1], m1[1], s.z, s.w, low[0], low[1], low[2], low[3]);
    }
#pragma unroll
    for (int i = 0; i < CHAINS && i * LENGTH < STEPS; i++) {
        float2 s = make_float2(0.f, 0.f);
        if constexpr (F::OFFSET != 0 || (F::MINIMUM && !FOLD)) s = sums(i);
        const float first = F::OFFSET ? s.x : 0.f, second = F::OFFSET ? s.y : 0.f;
        float d[4] = {first, second, first, second};
#pragma unroll
        for (int c = i * LENGTH / 4; c < (i + 1) * LENGTH / 4 && 4 * c < STEPS; c++) {
            u32 q0[4][2], q1[4][2];
            const auto x = operands(c);
            if constexpr (F::HIGH_APART) {
                float high[4] = {0.f, 0.f, 0.f, 0.f};
                F::high_bits(top, c, t, q0), F::high_bits(bottom, c, t, q1);
                multiply(high, q0, q1, x, c);
#pragma unroll
                for (int e = 0; e < 4; e++) d[e] = fmaf(F::high_factor(c, t), high[e], d[e]);
                F::low_bits(top, c, t, q0), F::low_bits(bottom, c, t, q1);
            } else {
                F::template bits<0>(top, none, c, t, q0);
                F::template bits<0>(bottom, none, c, t, q1);
            }
            multiply(d, q0, q1, x, c);
        }
        const bool there = !TAIL || F::SUB * (4 * i + t) < valid;
        const float s0 = there ? F::own_scale(top, own0, i, t) : 0.f, s1 = there ? F::own_scale(bottom, own1, i, t) : 0.f;
        float* sum = F::UNIT_SCALE ? part : acc;
        sum[0] = fmaf(s0, d[0], sum[0]), sum[1] = fmaf(s0, d[1], sum[1]), sum[2] = fmaf(s1, d[2], sum[2]), sum[3] = fmaf(s1, d[3], sum[3]);
        if constexpr (F::MINIMUM && !FOLD) {
            const float m0 = there ? F::own_minimum(top, own0, i, t) : 0.f, m1 = there ? F::own_minimum(bottom, own1, i, t) : 0.f;
            float* minimums = F::UNIT_SCALE ? low : acc;
            minimums[0] = fmaf(m0, s.x, minimums[0]), minimums[1] = fmaf(m0, s.y, minimums[1]), minimums[2] = fmaf(m1, s.x, minimums[2]), minimums[3] = fmaf(m1, s.y, minimums[3]);
        }
    }
    if constexpr (F::UNIT_SCALE) {
        const float d0 = F::unit_scale(own0), d1 = F::unit_scale(own1);
        acc[0] = fmaf(d0, part[0], acc[0]), acc[1] = fmaf(d0, part[1], acc[1]), acc[2] = fmaf(d1, part[2], acc[2]), acc[3] = fmaf(d1, part[3], acc[3]);
        if constexpr (F::MINIMUM) {
            const float factor = FOLD ? F::QUANTUM : 1.f, m0 = F::unit_minimum(own0) * factor, m1 = F::unit_minimum(own1) * factor;
            acc[0] = fmaf(m0, low[0], acc[0]), acc[1] = fmaf(m0, low[1], acc[1]), acc[2] = fmaf(m1, low[2], acc[2]), acc[3] = fmaf(m1, low[3], acc[3]);
        }
    }
}
// A lane's sums for its quad of lanes: of a row's two columns together, for the first row in lanes with even t and for the eighth after it in the others.
DI float sum_of_quad(const float (&acc)[4], int t) {
    const float first = acc[0] + acc[1], second = acc[2] + acc[3];
    float sum = (t & 1 ? second : first) + __shfl_xor_sync(~0u, t & 1 ? first : second, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
}

// The largest of what the threads of a block of 512 have.
DI float largest_of_block(float largest) {
    __shared__ float warps[16];
    for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = largest;
    __syncthreads();
    largest = warps[threadIdx.x & 15];
    for (int o = 8; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
    return largest;
}
