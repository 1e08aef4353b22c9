// Few rows of x (up to 8) times a whole weight matrix, at the speed of memory.
//
// One block per multiprocessor: a warp that issues copies of row segments into a ring of stages, and sixteen warps that multiply. A stage
// is `sets` times 16 weight rows x `span` units of k, in `boxes` tensor copies of `piece` units each, or with a copy for each row where there are no boxes;
// a warp owns one unit of one set, and the operands made from its part of x (KU units, one for each stage of a row) stay in its registers for the whole
// launch. The eight columns of the mma are (high, low) halves of four rows of x, which is as good as f32 and made here, by every block; of one row, whose groups
// lie side by side then (ONE_ROW); or eight rows in half precision (EIGHT_ROWS). Sums over the warps go through
// shared memory, in a ring of buffers: the warps take turns at adding up a group's, and none waits for another but where the ring is full.
// Rows of more than 16 KU units are cut into slices, one for each block of a cluster, whose sums meet at the end.

// The next group of rows and how many blocks are done: zero before and after a launch. Launches follow one another, and a block touches these only
// after the launch before has ended.
__device__ u32 row_groups[2];

template <int BITS> struct Shift { static constexpr int VALUE = BITS; };
// As many floats in one access.
template <int COUNT> struct Few { using type = float2; };
template <> struct Few<4> { using type = float4; };

// A weight, where its product goes, its rows, and boxes of a stage's rows.
struct Matrix {
    const u8* weights;
    float* output;
    u32 n;
    const TensorMap* map;
};
// Where rows of weights start: on multiples of 16 bytes, or anywhere. Then rows are copied one by one, or 8 or 16 of them, which are a multiple of 16 bytes, are a row of the tensor
// map, and a group has every eighth or sixteenth: those start at the same place past a multiple of 16, an even one where it is every eighth.
enum Starts { ALIGNED, ANYWHERE, EVERY_8TH, EVERY_16TH };
// Which rows of a matrix a group has: `height` neighbours, or of as many times `every` each one that is so many after the one before.
struct Groups {
    int height, every;
    DI int of(u32 n) const { return (n + height * every - 1) / (height * every) * every; }
    DI u32 row(int group, u32 r) const { return every == 1 ? group * height + r : (group / every * height + r) * every + group % every; }
};
// The last unit of rows: whole, a part of one, or SHORT_TAIL values at most, which are multiplied by the warp that has the unit before, right after it.
enum Tail { WHOLE, PART, SHORT };
constexpr int SHORT_TAIL = 64;
// What a launch multiplies. TURNS matrices are multiplied for a group of rows before the next group; of(group, shape, turn) is the matrix that a
// group belongs to, the group's number becoming the one within it; store(matrix, at, sums, held) takes element `at` of each turn's product, `matrix` being
// the first turn's, and what `before` has loaded for it.
struct OneMatrix {
    static constexpr int TURNS = 1;
    Matrix matrix;
    // sums = residual + product, where there is a residual; they may be one.
    const float* residual;
    float* sums;
    DI void prefetch_maps() const { prefetch_map(matrix.map); }
    DI int groups(const Groups& shape) const { return shape.of(matrix.n); }
    DI Matrix of(int& group, const Groups& shape, int turn) const { return matrix; }
    DI float before(u64 at) const { return residual ? residual[at] : 0.f; }
    DI void store(const Matrix& m, u64 at, const float (&sum)[TURNS], float held) const {
        m.output[at] = sum[0];
        if (residual) sums[at] = held + sum[0];
    }
};
// Matrices that share their input, whose groups of rows follow one another.
struct ThreeMatrices {
    static constexpr int TURNS = 1;
    Matrix matrices[3];
    DI void prefetch_maps() const {
        for (int i = 0; i < 3; i++) prefetch_map(matrices[i].map);
    }
    DI int groups(const Groups& shape) const { return shape.of(matrices[0].n) + shape.of(matrices[1].n) + shape.of(matrices[2].n); }
    DI Matrix of(int& group, const Groups& shape, int turn) const {
        if (group < shape.of(matrices[0].n)) return matrices[0];
        group -= shape.of(matrices[0].n);
        if (group < shape.of(matrices[1].n)) return matrices[1];
        group -= shape.of(matrices[1].n);
        return matrices[2];
    }
    DI float before(u64 at) const { return 0.f; }
    DI void store(const Matrix& m, u64 at, const float (&sum)[TURNS], float held) const { m.output[at] = sum[0]; }
};
// Two of one shape: the first one's output is its activation times the second.
struct GatedMatrices {
    static constexpr int TURNS = 2;
    Matrix gate, up;
    u32 activation; // 0 SiLU, 1 GELU by tanh
    DI void prefetch_maps() const { prefetch_map(gate.map), prefetch_map(up.map); }
    DI int groups(const Groups& shape) const { return shape.of(gate.n); }
    DI Matrix of(int& group, const Groups& shape, int turn) const { return turn ? up : gate; }
    DI float before(u64 at) const { return 0.f; }
    DI void store(const Matrix& m, u64 at, const float (&sum)[TURNS], float held) const {
        gate.output[at] = (activation ? gelu_tanh(sum[0]) : sum[0] / (1.f + expf(-sum[0]))) * sum[1];
        up.output[at] = sum[1];
    }
    DI static float gelu_tanh(float a) { return 0.5f * a * (1.f + tanhf(0.7978845608f * (a + 0.044715f * a * a * a))); }
};
// The norm that makes the input, of one row: x / sqrt(mean(x^2) + eps) * weight, which goes to `output` too.
struct Norm {
    const float* weight;
    float* output;
    float eps;
};

// Weights that the launches after this one read first. A block asks for its share of them once its own are on their way, so that memory works on while
// the launches change.
struct Ahead {
    const u8* at[AHEAD_RANGES];
    AheadRange ranges[AHEAD_RANGES];
    DI bool any() const { return ranges[0].bytes > 0; }
    // A warp. A range's segments lie apart and are read side by side, so pieces of all of them go from block to block.
    DI void fetch() const {
        constexpr u32 PIECE = 4096;
#pragma unroll 1
        for (int i = 0; i < AHEAD_RANGES; i++) {
            const AheadRange range = ranges[i];
            const u32 pieces = (range.bytes + PIECE - 1) / PIECE * range.segments;
            for (u32 p = (threadIdx.x & 31) * gridDim.x + blockIdx.x; p < pieces; p += 32 * gridDim.x) {
                const u32 segment = p % range.segments, within = p / range.segments * PIECE;
                const u64 first = (u64)((u64)range.groups * segment / range.segments) * range.group_bytes;
                prefetch_bulk(at[i] + first + within, min(PIECE, range.bytes - within));
            }
        }
    }
};

// Units of a weight's rows; it is read once.
DI void box_copy(u32 to, const TensorMap* map, u32 x, u32 y, u32 bar, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(bar),
                 "l"(policy)
                 : "memory");
}

template <class F, int KU, Columns COLUMNS, bool CLUSTERED, Tail TAIL, Starts STARTS, bool NORM, class Matrices>
DI void matvec(const Matrices& matrices, const float* input, const TensorMap* scales, const TensorMap* biases, const HopperRowArgs& a, const Norm& norm, const Ahead& ahead) {
    constexpr int MORE = TAIL == SHORT; // units that no stage has
    using L = MatVecLayout<F, KU + MORE>;
    constexpr bool RAGGED = STARTS != ALIGNED, STRIDED = STARTS > ANYWHERE;
    constexpr u32 EVERY = STARTS == EVERY_8TH ? 8 : STARTS == EVERY_16TH ? 16 : 1;
    constexpr bool ONE = COLUMNS == ONE_ROW, EIGHT = COLUMNS == EIGHT_ROWS, DIGITS = ONE && F::DIGITS, FETCHED = EIGHT && !CLUSTERED && F::FETCHED;
    static_assert(!NORM || ONE, "the norm is of one row");
    static_assert(!MORE || (ONE && F::SUB == 32 && !F::AFFINE), "short tails are of one row");
    constexpr int THREADS = WARPS * 32, STRIP = strip_of(COLUMNS), WRITERS = ONE ? 16 : 32; // sums of a warp, and the lanes that have them
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const u32 fixed = a.stages * a.stage_bytes, shared = shared_address(0), barriers = shared + fixed;
    auto full = [&](int slot) { return barriers + 8 * slot + L::FULL; };
    auto empty = [&](int slot) { return barriers + 8 * slot + L::EMPTY; };
    auto drained = [&](int buffer) { return barriers + 8 * buffer + L::DRAINED; };
    auto filled = [&](int buffer) { return barriers + 8 * buffer + L::FILLED; };
    const bool boxed = STARTS != ANYWHERE && a.boxes > 0;
    if (threadIdx.x == WARPS * 32) { // maps that are not there are fetched one after the other
        if (boxed) matrices.prefetch_maps();
        if (F::AFFINE) prefetch_map(scales), prefetch_map(biases);
    }
    if (warp == 0) { // a lane has barriers of its own: code that runs for the first time is slow
        static_assert(MOST_STAGES <= 32 && MOST_SUMS <= 32, "a lane for each");
        if (lane < a.stages) barrier_init(full(lane), 1), barrier_init(empty(lane), WARPS * (boxed ? 1 : 32));
        if (lane < a.sums) barrier_init(drained(lane), 32), barrier_init(filled(lane), WARPS * WRITERS);
        block_barriers_ready();
    }
    __syncthreads();
    launch_dependents();
    u32 rank = 0, slices = 1;
    if (CLUSTERED) {
        asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(slices));
    }
    const int height = 16 * a.sets;
    const Groups shape = {height, EVERY};
    const int groups = matrices.groups(shape);
    const int first_unit = rank * a.slice, all_units = MORE ? a.k / 256 : (a.k + 255) / 256, units = min(all_units, first_unit + (int)a.slice);
    // Groups of rows: a range for each cluster; else as many for each block as it has own ones, and the rest from the counter, passed on through a ring of
    // sixteen, more than there are stages.
    const int clusters = gridDim.x / slices, cluster = blockIdx.x / slices;
    const int begin = CLUSTERED ? (int)((u64)groups * cluster / clusters) : 0, end = CLUSTERED ? (int)((u64)groups * (cluster + 1) / clusters) : 0;
    const u32 partial = fixed + L::SUMS + a.sums * WARPS * 4 * STRIP; // a cluster's sums of its slices
    volatile int* ring = (volatile int*)(smem + fixed + L::RING);
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (NORM && warp == WARPS + 1) // nearer, while the launch before still computes what is to be normed
            for (u32 i = 32 * lane; i < a.k; i += 32 * 32) prefetch_line(norm.weight + i);
        if (warp == WARPS) {
            const u64 policy = evict_first_policy();
            int issued = 0, slot = 0, phase = 1;
            // The boxes of a stage, in the map of a matrix: of `every` of its rows each.
            auto boxes_of = [&](int unit) { return (min((int)a.span, units - unit) + a.piece - 1) / a.piece; };
            auto box_x = [&](int group, int unit, int box) { return (unit * F::UNIT + box * a.piece * F::UNIT + (STRIDED ? group % EVERY * (u32)a.w_row : 0) & ~15u) / 8; };
            // Into L2, a group and those of the block's own after it: memory idles while operands are made and stages are full.
            auto fetch_own = [&](int group, int count) {
                for (int j = 0; j < count && group < groups; j++, group += gridDim.x)
                    for (int turn = 0; turn < Matrices::TURNS; turn++) {
                        int within = group;
                        const Matrix matrix = matrices.of(within, shape, turn);
                        for (int unit = first_unit; unit < units; unit += a.span)
                            if (lane < boxes_of(unit)) prefetch_box(matrix.map, box_x(within, unit, lane), within / EVERY * height);
                    }
            };
            int next = CLUSTERED ? begin : blockIdx.x;
            const u32 own = ahead.any() ? a.own_asking : a.own;
            int own_left = FETCHED && boxed ? own : 0;
            // Copies units [unit, unit + span) of the rows of a group into the next stage.
            auto stage = [&](const Matrix& matrix, int group, int unit) {
                // More copies at once only queue, and x, which operands are made of, behind them.
                if (issued >= a.flight && issued < a.stages) barrier_wait(full(issued - a.flight), 0);
                if (issued == a.stages - a.lent) {
                    if constexpr (FETCHED) {
                        barrier_wait(full(issued - 1), 0);
                        fetch_own(next, own_left);
                    }
                    named_sync<2, THREADS + 32>(); // the operands are in registers now
                }
                if (issued >= a.stages) barrier_wait(empty(slot), phase);
                const u32 inside = unit * F::UNIT, at = shared + slot * a.stage_bytes, bar = full(slot), sides = 2 * (F::AFFINE ? height * a.side_pitch : 0);
                const u32 length = (u32)min((u64)((min((int)a.span, units - unit) + (MORE && unit + (int)a.span >= all_units)) * F::UNIT), a.w_row - inside);
                u32 total = height * ((length + 15) & ~15u);
                const int boxes = boxes_of(unit);
                if (boxed) total = boxes * height * a.pitch;
                if constexpr (STARTS == ANYWHERE) {
                    total = 0;
                    for (int r = lane; r < height; r += 32) {
                        const u32 past = (u32)((u64)matrix.weights + min((u32)(group * height + r), matrix.n - 1) * a.w_row + inside) & 15;
                        total += (past + length + 15) & ~15u;
                    }
#pragma unroll
                    for (int o = 16; o; o >>= 1) total += __shfl_xor_sync(~0u, total, o);
                }
                if (lane == 0) {
                    barrier_expect(bar, total + sides);
                    if (boxed)
                        for (int box = 0; box < boxes; box++) box_copy(at + box * height * a.pitch, matrix.map, box_x(group, unit, box), group / EVERY * height, bar, policy);
                    if constexpr (F::AFFINE) {
                        const u32 side = at + height * a.pitch * max(a.boxes, 1);
                        tile_copy(side, scales, (unit * F::SIDE & ~15) / 2, group * height, bar);
                        tile_copy(side + height * a.side_pitch, biases, (unit * F::SIDE & ~15) / 2, group * height, bar);
                    }
                }
                __syncwarp();
                for (int r = boxed ? height : lane; r < height; r += 32) {
                    const u8* from = matrix.weights + min((u32)(group * height + r), matrix.n - 1) * a.w_row + inside;
                    const u32 past = STARTS == ANYWHERE ? (u32)(u64)from & 15 : 0;
                    bulk_copy(at + r * a.pitch, from - past, (past + length + 15) & ~15u, bar, policy);
                }
                issued++;
                if (++slot == a.stages) slot = 0, phase ^= 1;
            };
            const bool drawn = !CLUSTERED && own * gridDim.x < groups;
            auto draw = [&]() { return (int)(atomicAdd(row_groups, 1) + own * gridDim.x); };
#pragma unroll 1
            for (int i = 0;; i++) {
                const int group = next;
                if (CLUSTERED) next = group + 1;
                else if (i + 1 < own) next = group + gridDim.x;
                else if (drawn && i + 1 > own && lane == 0) next = draw(); // asked for early enough to have arrived
                if (!CLUSTERED && lane == 0) ring[i & 15] = group;
                if (group >= (CLUSTERED ? end : groups)) break;
                if constexpr (FETCHED) own_left--;
#pragma unroll 1
                for (int turn = 0; turn < Matrices::TURNS; turn++) {
                    int within = group;
                    const Matrix matrix = matrices.of(within, shape, turn);
#pragma unroll 1
                    for (int unit = first_unit; unit < units; unit += a.span) stage(matrix, within, unit);
                }
                if (!CLUSTERED) {
                    if (i + 1 == own) { // the launch before may run until here
                        next = groups;
                        if (drawn) {
                            wait_for_predecessor();
                            if (lane == 0) next = draw();
                        }
                    }
                    next = __shfl_sync(~0u, next, 0);
                }
            }
            ahead.fetch();
            if (issued <= a.stages - a.lent) named_sync<2, THREADS + 32>();
            if (!CLUSTERED) {
                if (issued >= a.stages) barrier_wait(empty(slot), phase);
                if (lane == 0) {
                    barrier_arrive(full(slot));
                    if (drawn) {
                        wait_for_predecessor();
                        __threadfence(); // the last block leaves the counters as it found them
                        if (atomicAdd(row_groups + 1, 1) == gridDim.x - 1) atomicExch(row_groups, 0), atomicExch(row_groups + 1, 0);
                    }
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        u32 b[KU + MORE][DIGITS ? DIGIT_PAIRS : ONE ? 4 : 16][2], own[4];
        if constexpr (ONE) own_columns(own);
        float inverse[2] = {0.f, 0.f}; // of prepared rows the sums are scaled
        const int set = warp / a.span, place = warp % a.span; // this warp's rows and unit in a stage
        const bool works = set < a.sets;
        const u32 table = fixed + L::TABLES + warp * L::TABLE;
        wait_for_predecessor();
        float* const all_sums = (float*)(smem + fixed + L::SUMS);
        // A short tail is multiplied by the warp that has the unit before; where rows are one stage by one of the warps that have units of it, each group's by another: all others
        // would wait for one that has them all.
        constexpr bool IN_TURN = KU == 1;
        const int last_start = MORE ? first_unit + (units - 1 - first_unit) / (int)a.span * a.span : 0, sharers = units - last_start;
        const bool has_tail = MORE && works && units == all_units && (IN_TURN || place == sharers - 1);
        auto unit_of = [&](int i) {
            if (MORE && i == KU) return has_tail ? (u32)all_units : 1u << 22;
            return works && first_unit + place + i * a.span < units ? first_unit + place + i * a.span : 1u << 22;
        };
        // Of the warps that have the tail one counts its squares.
        const int counted = MORE && place == sharers - 1 ? KU + MORE : KU;
        float squares = 0.f;
        if constexpr (EIGHT) {
            make_columns<F, KU, FOLDED<F, COLUMNS>>(b, input + a.first * a.x_row, a.x_row, a.m, a.k, unit_of, (a.stages - a.lent) * a.stage_bytes + warp * COLUMN_STAGING, table, table + L::INVERSE);
        } else if constexpr (DIGITS) squares = load_digits<F, KU, NORM>(b, inverse[0], input + a.first * a.x_row, a.k, norm.weight, unit_of, (a.stages - a.lent) * a.stage_bytes + warp * KU * 512, table);
        else
            squares = load_operands<F, KU + MORE, ONE, NORM>(
                b, inverse, a.m, a.k, norm.weight, unit_of, counted, [&](int token) { return input + (u64)(a.first + token) * a.x_row; },
                (a.stages - a.lent) * a.stage_bytes + warp * (KU + MORE) * 512, table);
        if constexpr (FOLDED<F, COLUMNS>) {
#pragma unroll
            for (int u = 0; u < KU + MORE; u++) fold_sums<F>(table + u * L::GROUPS * 32);
        }
        __syncwarp();
        proxy_fence();
        named_arrive<2, THREADS + 32>();
        // A value of bits<0> is QUANTUM.
        inverse[0] *= 1.f / F::QUANTUM, inverse[1] *= 1.f / F::QUANTUM;
        float factor = 1.f;
        float* shares = (float*)(smem + fixed + L::SHARES);
        if (NORM && lane == 0) shares[warp] = set == 0 ? squares : 0.f;
        named_sync<1, THREADS>(); // no warp reads weights where another still has its part of x
        if constexpr (NORM) { // the factor of the row applies to the sums; the first set's warps have all of it
            float total = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) total += shares[w];
            factor = 1.f / sqrtf(total / (float)a.k + norm.eps);
            inverse[0] *= factor, inverse[1] *= factor;
        }
        // Sums are added up while the next group is computed, where they have a buffer of their own then.
        const bool later = a.sums > Matrices::TURNS;
        // Where the sums of a warp go: a buffer, and how often the ring has been gone round.
        struct Place {
            int buffer, round;
            DI void advance(int buffers) {
                if (++buffer == buffers) buffer = 0, round ^= 1;
            }
            // The place so many before this one.
            DI Place back(int count, int buffers) const {
                Place at = {buffer - count, round};
                while (at.buffer < 0) at.buffer += buffers, at.round ^= 1;
                return at;
            }
        };
        // Adds up the sums of the block's i-th group, which begin in the buffer of `from`: a warp.
        auto add_up = [&](int i, Place from) {
            const float* columns[Matrices::TURNS];
            int within = CLUSTERED ? begin + i : ring[i & 15];
            const Matrix matrix = matrices.of(within, shape, 0);
            // The loop around has no registers left for what would be made of these before it.
            u32 n = matrix.n, thread = threadIdx.x;
            keep(n), keep(thread);
            const u32 g = thread >> 2 & 7, t = thread & 3;
            // Where the product of a token and a row of the group goes.
            auto index = [&](u32 token, u32 r) { return (u64)(a.first + token) * n + min(shape.row(within, r), n - 1); };
            const float held = ONE && !CLUSTERED && lane < height ? matrices.before(index(0, lane)) : 0.f;
            Place at = from;
#pragma unroll
            for (int turn = 0; turn < Matrices::TURNS; turn++, at.advance(a.sums)) {
                barrier_wait(filled(at.buffer), at.round);
                columns[turn] = all_sums + at.buffer * WARPS * STRIP;
            }
            auto store = [&](u32 token, u32 r, const float (&sums)[Matrices::TURNS]) {
                if (CLUSTERED) *(float*)(smem + partial + ((i * a.m + token) * height + r) * 4) = sums[0];
                else if (shape.row(within, r) < n) matrices.store(matrix, index(token, r), sums, ONE && r < 32 ? held : matrices.before(index(token, r)));
            };
            if constexpr (ONE) {
#pragma unroll 1
                for (u32 o = lane; o < height; o += 32) {
                    const u32 first = (o >> 4) * a.span * STRIP + (o & 15);
                    float sums[Matrices::TURNS];
#pragma unroll
                    for (int turn = 0; turn < Matrices::TURNS; turn++) sums[turn] = 0.f;
#pragma unroll 4
                    for (int w = 0; w < a.span; w++)
#pragma unroll
                        for (int turn = 0; turn < Matrices::TURNS; turn++) sums[turn] += columns[turn][first + w * STRIP];
                    store(0, o, sums);
                }
            } else {
                constexpr int EACH = STRIP / 32; // of a lane
                using Sums = typename Few<EACH>::type;
#pragma unroll 1
                for (u32 s = 0; s < a.sets; s++) {
                    float sums[EACH][Matrices::TURNS];
#pragma unroll
                    for (int turn = 0; turn < Matrices::TURNS; turn++) {
#pragma unroll
                        for (int e = 0; e < EACH; e++) sums[e][turn] = 0.f;
#pragma unroll 4
                        for (int w = 0; w < a.span; w++) {
                            const Sums v = ((const Sums*)(columns[turn] + (s * a.span + w) * STRIP))[lane];
#pragma unroll
                            for (int e = 0; e < EACH; e++) sums[e][turn] += (&v.x)[e];
                        }
                    }
#pragma unroll
                    for (int e = 0; e < EACH; e++) {
                        const u32 token = EIGHT ? 2 * t + (e & 1) : t, row = 16 * s + g + 8 * (EIGHT ? e >> 1 : e);
                        if (token < a.m) store(token, row, sums[e]);
                    }
                }
            }
#pragma unroll
            for (int turn = 0; turn < Matrices::TURNS; turn++, from.advance(a.sums)) barrier_arrive(drained(from.buffer));
        };
        auto row_at = [&](int place) { return (set * 16 + g + place / a.piece * height) * a.pitch + place % a.piece * F::UNIT; };
        const u32 row = row_at(place), row_of_last = MORE ? row_at(sharers - 1) : 0;
        const u32 side = height * a.pitch * max(a.boxes, 1) + (set * 16 + g) * a.side_pitch + place * side_of<F>();
        // This warp's rows of a stage, at the unit `start + place`, which is `row` bytes into it.
        auto find_rows = [&](auto shift, auto& rows, int start, int place, u32 row, int slot, int group, int turn) {
            constexpr int SHIFT = decltype(shift)::VALUE;
            const u32 at = slot * a.stage_bytes;
            u32 top = at + row, bottom = top + 8 * a.pitch;
            if constexpr (RAGGED) {
                int within = group;
                const Matrix matrix = matrices.of(within, shape, turn);
                if constexpr (STRIDED) {
                    top += (u32)(within % EVERY * a.w_row + (start + place / a.piece * a.piece) * F::UNIT) & 15;
                    bottom = top + 8 * a.pitch;
                } else {
                    const u64 from = (u64)(matrix.weights + start * F::UNIT);
                    const u32 weight_row = within * height + set * 16 + g;
                    top += (u32)(from + min(weight_row, matrix.n - 1) * a.w_row) & 15;
                    bottom += (u32)(from + min(weight_row + 8, matrix.n - 1) * a.w_row) & 15;
                }
            }
            if constexpr (STRIDED) rows[0] = {smem + (top & ~3u), 8 * (top & 3)}, rows[1] = {smem + (top & ~3u) + 8 * a.pitch, rows[0].bits}; // both start alike
            else if constexpr (SHIFT < 0) rows[0] = {smem + (top & ~3u), 8 * (top & 3)}, rows[1] = {smem + (bottom & ~3u), 8 * (bottom & 3)};
            else rows[0] = {smem + top - SHIFT / 8}, rows[1] = {smem + bottom - SHIFT / 8};
            rows[0].scales = smem + at + side + (start * side_of<F>() & 15), rows[1].scales = rows[0].scales + 8 * a.side_pitch;
            rows[0].biases = rows[0].scales + height * a.side_pitch, rows[1].biases = rows[1].scales + height * a.side_pitch;
        };
        // One lane for its warp; but every lane where rows are copied one by one, since compute-sanitizer sees such copies and follows lanes, not warps.
        const bool releases = lane == 0 || !boxed;
        // acc += this warp's rows of a stage times its operands for the unit `sub`.
        auto multiply = [&](auto shift, int sub, int slot, int group, int turn, const auto& operands, float (&acc)[4]) {
            constexpr int SHIFT = decltype(shift)::VALUE;
            const int start = first_unit + sub * a.span, valid = (int)a.k - (start + place) * 256;
            Row<SHIFT> rows[2];
            find_rows(shift, rows, start, place, row, slot, group, turn);
            if constexpr (ONE) {
                u32 sums = table + sub * L::GROUPS * 32;
                auto of_group = [&](int i) { return *(const float2*)(smem + sums + 32 * t + 128 * i); };
                auto fold = [&]() { return g < 2 ? *(const uint4*)(smem + sums + 16 * lane) : make_uint4(0, 0, 0, 0); };
                if constexpr (DIGITS) multiply_digits<F, SHIFT>(rows[0], rows[1], t, operands, sums, fold, acc);
                else multiply_spread<F, SHIFT, TAIL == PART>(rows[0], rows[1], t, HeldOperands<F>{operands, own}, of_group, fold, valid, acc);
                if constexpr (MORE) {
                    // The same warp for the same rows, whatever block has them.
                    if (!has_tail || start != last_start || (IN_TURN && place != (int)__umulhi((group + 3 * set) * 0x9e3779b1u, sharers))) return;
                    sums = table + KU * L::GROUPS * 32;
                    find_rows(shift, rows, start, sharers - 1, row_of_last, slot, group, turn);
                    const int left = a.k - all_units * 256;
                    const auto tail0 = rows[0].moved(F::UNIT), tail1 = rows[1].moved(F::UNIT);
                    if (left > 32) multiply_spread<F, SHIFT, true, 4>(tail0, tail1, t, HeldOperands<F>{b[KU], own}, of_group, fold, left, acc);
                    else multiply_spread<F, SHIFT, true, 2>(tail0, tail1, t, HeldOperands<F>{b[KU], own}, of_group, fold, left, acc);
                }
            } else multiply_unit<F, SHIFT, TAIL == PART, FOLDED<F, COLUMNS>, EIGHT>(rows[0], rows[1], t, operands, table + sub * L::GROUPS * 32, table + L::INVERSE + 32 * sub, valid, acc);
        };
        const bool together = !RAGGED && !MORE && F::BESIDE && ONE && KU == 2 && works && first_unit + a.span + place < units && a.stages > 3;
        int slot = 0, phase = 0;
        Place to = {0, 0};
#pragma unroll 1
        for (int i = 0;; i++) {
            int group = begin + i;
            bool none = CLUSTERED && group >= end;
#pragma unroll 1
            for (int turn = 0; turn < Matrices::TURNS && !none; turn++) {
                float acc[4] = {0.f, 0.f, 0.f, 0.f};
                // Waits for the stage of a unit, and learns from a group's first whether there is one.
                auto await = [&](bool first) {
                    barrier_wait(full(slot), phase);
                    if (!CLUSTERED && first && turn == 0) group = ring[i & 15];
                    return CLUSTERED || group < groups;
                };
                auto advance = [&]() {
                    if (++slot == a.stages) slot = 0, phase ^= 1;
                };
                if (together) { // so that one's instructions fill the other's pauses
                    const int first = slot;
                    if (await(true)) {
                        advance();
                        await(false);
                        // All units of a warp start alike.
                        if constexpr (F::UNIT % 4 == 0) multiply(Shift<0>{}, 0, first, group, turn, b[0], acc), multiply(Shift<0>{}, KU - 1, slot, group, turn, b[KU - 1], acc);
                        else if (place & 1) multiply(Shift<16>{}, 0, first, group, turn, b[0], acc), multiply(Shift<16>{}, KU - 1, slot, group, turn, b[KU - 1], acc);
                        else multiply(Shift<0>{}, 0, first, group, turn, b[0], acc), multiply(Shift<0>{}, KU - 1, slot, group, turn, b[KU - 1], acc);
                        __syncwarp();
                        if (releases) barrier_arrive(empty(first)), barrier_arrive(empty(slot));
                        advance();
                    }
                } else {
#pragma unroll
                    for (int sub = 0; sub < KU; sub++) {
                        const int start = first_unit + sub * a.span;
                        if (sub > 0 && start >= units) break;
                        if (!await(sub == 0)) break;
                        if (works && start + place < units) {
                            if constexpr (STARTS == EVERY_8TH) multiply(Shift<-2>{}, sub, slot, group, turn, b[sub], acc);
                            else if constexpr (RAGGED) multiply(Shift<-1>{}, sub, slot, group, turn, b[sub], acc);
                            else if constexpr (F::UNIT % 4 == 0) multiply(Shift<0>{}, sub, slot, group, turn, b[sub], acc);
                            else if (place & 1) multiply(Shift<16>{}, sub, slot, group, turn, b[sub], acc);
                            else multiply(Shift<0>{}, sub, slot, group, turn, b[sub], acc);
                        }
                        __syncwarp();
                        if (releases) barrier_arrive(empty(slot));
                        advance();
                    }
                }
                none = !CLUSTERED && group >= groups;
                if (none) break;
                barrier_wait(drained(to.buffer), to.round ^ 1);
                float* mine = all_sums + (to.buffer * WARPS + warp) * STRIP;
                if constexpr (ONE) {
                    const float sum = sum_of_quad(acc, t);
                    if (t < 2) mine[8 * t + g] = sum * inverse[0];
                } else if constexpr (!EIGHT) ((float2*)mine)[lane] = make_float2((acc[0] + acc[1]) * inverse[0], (acc[2] + acc[3]) * inverse[0]);
                else ((float4*)mine)[lane] = make_float4(acc[0], acc[1], acc[2], acc[3]);
                if (!ONE || t < 2) barrier_arrive(filled(to.buffer));
                to.advance(a.sums);
                const int due = later ? i - 1 : i;
                if (turn == (later ? 0 : Matrices::TURNS - 1) && due >= 0 && warp == due % WARPS) add_up(due, to.back(Matrices::TURNS + (later ? 1 : 0), a.sums));
            }
            if (none) {
                if (later && i > 0 && warp == (i - 1) % WARPS) add_up(i - 1, to.back(Matrices::TURNS, a.sums));
                break;
            }
        }
        if constexpr (NORM) { // by a block that has had the fewest rows
            if (blockIdx.x == gridDim.x - 1)
                for (u32 i = threadIdx.x; i < a.k; i += THREADS) norm.output[i] = ((const float*)input)[i] * factor * norm.weight[i];
        }
    }
    if constexpr (CLUSTERED) { // every block adds up its share of the cluster's sums
        auto cluster_sync = []() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); };
        const u32 all = (end - begin) * height * a.m, first = rank * blockDim.x + threadIdx.x;
        int group = 0;
        const Matrix matrix = matrices.of(group, shape, 0);
        auto row = [&](u32 o) { return shape.row(begin + o / (height * a.m), o % height); };
        auto index = [&](u32 o) { return (u64)(a.first + o / height % a.m) * matrix.n + min(row(o), matrix.n - 1); };
        wait_for_predecessor(); // the warps that copy have not waited
        const float held = first < all ? matrices.before(index(first)) : 0.f;
        __syncthreads();
        cluster_sync();
        for (u32 o = first; o < all; o += slices * blockDim.x) {
            const u32 at = shared + partial + o * 4;
            float sum = 0.f;
            for (int s = 0; s < slices; s++) {
                float v;
                asm volatile("{.reg .b32 r; mapa.shared::cluster.u32 r, %1, %2; ld.shared::cluster.f32 %0, [r];}" : "=f"(v) : "r"(at), "r"(s) : "memory");
                sum += v;
            }
            const float sums[1] = {sum};
            if (row(o) < matrix.n) matrices.store(matrix, index(o), sums, o == first ? held : matrices.before(index(o)));
        }
        cluster_sync();
    }
}

// y [m, n] = x [m, k] times the weight's rows. Where there is a residual, sums = residual + y.
template <class F, int KU, Columns COLUMNS, bool CLUSTERED, Tail TAIL, Starts STARTS>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_mv(const u8* weights, const float* x, float* y, const __grid_constant__ HopperRowArgs args, const float* residual, float* sums,
             const __grid_constant__ TensorMap map, const __grid_constant__ Ahead ahead) {
    matvec<typename Started<F, STARTS != ALIGNED>::Format, KU, COLUMNS, CLUSTERED, TAIL, STARTS, false>(OneMatrix{{weights, y, args.n, &map}, residual, sums}, x, nullptr, nullptr, args, {}, ahead);
}
// The same for up to three matrices of one format and as many columns: y0 = x w0, y1 = x w1, y2 = x w2. With NORM the input is x normed.
template <class F, int KU, Columns COLUMNS, Tail TAIL, Starts STARTS, bool NORM>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1) hopper_mv_group(const u8* w0, const u8* w1, const u8* w2, const float* x, float* y0, float* y1, float* y2,
                                                                       const __grid_constant__ HopperRowArgs args, u32 n1, u32 n2, const float* norm_weight, float* normed, float eps,
                                                                       const __grid_constant__ TensorMap map0, const __grid_constant__ TensorMap map1, const __grid_constant__ TensorMap map2,
                                                                       const __grid_constant__ Ahead ahead) {
    matvec<typename Started<F, STARTS != ALIGNED>::Format, KU, COLUMNS, false, TAIL, STARTS, NORM>(ThreeMatrices{{{w0, y0, args.n, &map0}, {w1, y1, n1, &map1}, {w2, y2, n2, &map2}}}, x, nullptr, nullptr, args, {norm_weight, normed, eps}, ahead);
}
// The same for a gated pair.
template <class F, int KU, Columns COLUMNS, Tail TAIL, Starts STARTS, bool NORM>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1) hopper_mv_gated(const u8* w0, const u8* w1, const float* x, float* y0, float* y1, const __grid_constant__ HopperRowArgs args,
                                                                       u32 activation, const float* norm_weight, float* normed, float eps, const __grid_constant__ TensorMap map0,
                                                                       const __grid_constant__ TensorMap map1, const __grid_constant__ Ahead ahead) {
    matvec<typename Started<F, STARTS != ALIGNED>::Format, KU, COLUMNS, false, TAIL, STARTS, NORM>(GatedMatrices{{w0, y0, args.n, &map0}, {w1, y1, args.n, &map1}, activation}, x, nullptr, nullptr, args, {norm_weight, normed, eps}, ahead);
}
// The same for affine formats: boxes of a stage's rows x side_pitch bytes of scales and biases.
template <class F, int KU, Columns COLUMNS, bool CLUSTERED, Tail TAIL, Starts STARTS>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_mv_affine(const u8* weights, const float* x, float* y, const __grid_constant__ HopperRowArgs args, const float* residual, float* sums, const __grid_constant__ TensorMap map,
                     const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases, const __grid_constant__ Ahead ahead) {
    matvec<typename Started<F, STARTS != ALIGNED>::Format, KU, COLUMNS, CLUSTERED, TAIL, STARTS, false>(OneMatrix{{weights, y, args.n, &map}, residual, sums}, x, &scales, &biases, args, {}, ahead);
}
