// Few rows of x (up to 8) times a whole weight matrix, at the speed of memory.
//
// One block per multiprocessor: a warp that issues copies of row segments into a ring of stages, and sixteen warps that multiply. A stage
// is `sets` times 16 weight rows x `span` units of k, in `boxes` tensor copies of `piece` units each, or with a copy for each row where there are no boxes;
// a warp owns one unit of one set, and the operands made from its part of x (KU units, one for each stage of a row) stay in its registers for the whole
// launch. The eight columns of the mma are (high, low) halves of four rows of x, which is as good as f32 and made here, by every block; of one row, whose groups
// lie side by side then (ONE_ROW); or eight rows in half precision, which take so long that a kernel prepares them once (EIGHT_ROWS). Sums over the warps go through
// shared memory, in a ring of buffers: the warps take turns at adding up a group's, and none waits for another but where the ring is full.
// Rows of more than 16 KU units are cut into slices, one for each block of a cluster, whose sums meet at the end.

// The next group of rows and how many blocks are done: zero before and after a launch. Launches follow one another, and a block touches these only
// after the launch before has ended.
__device__ u32 row_groups[2];

// The first of the named barriers at which all warps and the one that adds up announce sums.
constexpr int FILLED = 3;

// A weight, where its product goes, its rows, and boxes of a stage's rows.
struct Matrix {
    const u8* weights;
    float* output;
    u32 n;
    const TensorMap* map;
};
// What a launch multiplies. TURNS matrices are multiplied for a group of rows before the next group; of(group, height, turn) is the matrix that a
// group belongs to, the group's number becoming the one within it; store(matrix, at, sums, held) takes element `at` of each turn's product, `matrix` being
// the first turn's, and what `before` has loaded for it.
struct OneMatrix {
    static constexpr int TURNS = 1;
    Matrix matrix;
    // sums = residual + product, where there is a residual; they may be one.
    const float* residual;
    float* sums;
    DI void prefetch_maps() const { prefetch_map(matrix.map); }
    DI int groups(int height) const { return (matrix.n + height - 1) / height; }
    DI Matrix of(int& group, int height, int turn) const { return matrix; }
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
    DI int groups(int height, int i) const { return (matrices[i].n + height - 1) / height; }
    DI int groups(int height) const { return groups(height, 0) + groups(height, 1) + groups(height, 2); }
    DI Matrix of(int& group, int height, int turn) const {
        if (group < groups(height, 0)) return matrices[0];
        group -= groups(height, 0);
        if (group < groups(height, 1)) return matrices[1];
        group -= groups(height, 1);
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
    DI int groups(int height) const { return (gate.n + height - 1) / height; }
    DI Matrix of(int& group, int height, int turn) const { return turn ? up : gate; }
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

template <class F, int KU, Columns COLUMNS, bool CLUSTERED, bool TAIL, bool RAGGED, bool NORM, class Matrices>
DI void matvec(const Matrices& matrices, const void* input, const TensorMap* scales, const TensorMap* biases, const HopperRowArgs& a, const Norm& norm, const Ahead& ahead) {
    using L = MatVecLayout<F, KU>;
    constexpr bool ONE = COLUMNS == ONE_ROW, PREPARED = COLUMNS == EIGHT_ROWS;
    static_assert(!NORM || ONE, "the norm is of one row");
    constexpr int THREADS = WARPS * 32;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const u32 fixed = a.stages * a.stage_bytes, shared = shared_address(0), barriers = shared + fixed;
    auto full = [&](int slot) { return barriers + 8 * slot + L::FULL; };
    auto empty = [&](int slot) { return barriers + 8 * slot + L::EMPTY; };
    auto drained = [&](int buffer) { return barriers + 8 * buffer + L::DRAINED; };
    if (threadIdx.x == WARPS * 32) { // maps that are not there are fetched one after the other
        if (!RAGGED && a.boxes > 0) matrices.prefetch_maps();
        if (F::AFFINE) prefetch_map(scales), prefetch_map(biases);
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) barrier_init(full(i), 1), barrier_init(empty(i), WARPS);
        for (int i = 0; i < a.sums; i++) barrier_init(drained(i), 32);
        barriers_ready();
    }
    __syncthreads();
    launch_dependents();
    u32 rank = 0, slices = 1;
    if (CLUSTERED) {
        asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(slices));
    }
    const int height = 16 * a.sets, groups = matrices.groups(height);
    const int first_unit = rank * a.slice, units = min((a.k + 255) / 256, first_unit + a.slice);
    // Groups of rows: a range for each cluster; else as many for each block as it has own ones, and the rest from the counter, passed on through a ring of
    // sixteen, more than there are stages.
    const int clusters = gridDim.x / slices, cluster = blockIdx.x / slices;
    const int begin = CLUSTERED ? (int)((u64)groups * cluster / clusters) : 0, end = CLUSTERED ? (int)((u64)groups * (cluster + 1) / clusters) : 0;
    const u32 partial = fixed + L::SUMS + a.sums * WARPS * 64 * a.m; // a cluster's sums of its slices
    volatile int* ring = (volatile int*)(smem + fixed + L::RING);
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (NORM && warp == WARPS + 1) // nearer, while the launch before still computes what is to be normed
            for (u32 i = 32 * lane; i < a.k; i += 32 * 32) prefetch_line(norm.weight + i);
        if (warp == WARPS) {
            const u64 policy = evict_first_policy();
            int issued = 0, slot = 0, phase = 1;
            // Copies units [unit, unit + span) of the rows of a group into the next stage.
            auto stage = [&](const Matrix& matrix, int group, int unit) {
                if (issued == a.stages - a.lent) named_sync<2, THREADS + 32>(); // the operands are in registers now
                if (issued >= a.stages) barrier_wait(empty(slot), phase);
                const u32 inside = unit * F::UNIT, at = shared + slot * a.stage_bytes, bar = full(slot), sides = 2 * (F::AFFINE ? height * a.side_pitch : 0);
                const bool boxed = !RAGGED && a.boxes > 0;
                const u32 length = (u32)min((u64)(min((int)a.span, units - unit) * F::UNIT), a.w_row - inside);
                u32 total = height * ((length + 15) & ~15u);
                const int boxes = (min((int)a.span, units - unit) + a.piece - 1) / a.piece;
                if (boxed) total = boxes * height * a.pitch;
                if constexpr (RAGGED) {
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
                        for (int box = 0; box < boxes; box++) box_copy(at + box * height * a.pitch, matrix.map, (inside + box * a.piece * F::UNIT) / 8, group * height, bar, policy);
                    if constexpr (F::AFFINE) {
                        const u32 side = at + height * a.pitch * max(a.boxes, 1);
                        tile_copy(side, scales, (unit * F::SIDE & ~15) / 2, group * height, bar);
                        tile_copy(side + height * a.side_pitch, biases, (unit * F::SIDE & ~15) / 2, group * height, bar);
                    }
                }
                __syncwarp();
                for (int r = boxed ? height : lane; r < height; r += 32) {
                    const u8* from = matrix.weights + min((u32)(group * height + r), matrix.n - 1) * a.w_row + inside;
                    const u32 past = RAGGED ? (u32)(u64)from & 15 : 0;
                    bulk_copy(at + r * a.pitch, from - past, (past + length + 15) & ~15u, bar, policy);
                }
                issued++;
                if (++slot == a.stages) slot = 0, phase ^= 1;
            };
            const bool drawn = !CLUSTERED && a.own * gridDim.x < groups;
            auto draw = [&]() { return (int)(atomicAdd(row_groups, 1) + a.own * gridDim.x); };
            int next = CLUSTERED ? begin : blockIdx.x;
#pragma unroll 1
            for (int i = 0;; i++) {
                const int group = next;
                if (CLUSTERED) next = group + 1;
                else if (i + 1 < a.own) next = group + gridDim.x;
                else if (drawn && i + 1 > a.own && lane == 0) next = draw(); // asked for early enough to have arrived
                if (!CLUSTERED && lane == 0) ring[i & 15] = group;
                if (group >= (CLUSTERED ? end : groups)) break;
#pragma unroll 1
                for (int turn = 0; turn < Matrices::TURNS; turn++) {
                    int within = group;
                    const Matrix matrix = matrices.of(within, height, turn);
#pragma unroll 1
                    for (int unit = first_unit; unit < units; unit += a.span) stage(matrix, within, unit);
                }
                if (!CLUSTERED) {
                    if (i + 1 == a.own) { // the launch before may run until here
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
        u32 b[KU][ONE ? 4 : 16][2], own[4];
        if constexpr (ONE) own_columns(own);
        float inverse[2] = {0.f, 0.f}; // of prepared rows the sums are scaled
        const int set = warp / a.span, place = warp % a.span; // this warp's rows and unit in a stage
        const bool works = set < a.sets;
        const u32 table = fixed + L::TABLES + warp * L::TABLE;
        wait_for_predecessor();
        const u32 strip = 16 * a.m; // sums of a warp: 16 rows of each token
        float* const all_sums = (float*)(smem + fixed + L::SUMS);
        auto unit_of = [&](int i) { return works && first_unit + place + i * a.span < units ? first_unit + place + i * a.span : 1 << 22; };
        float squares = 0.f;
        if constexpr (PREPARED) {
            const int all = (a.k + 255) / 256;
            fetch_operands<F, KU>(b, a.m, unit_of, all, Prepared<F>((u8*)input, all), table);
        } else
            squares = load_operands<F, KU, ONE, NORM>(
                b, inverse, a.m, a.k, norm.weight, unit_of, [&](int token) { return (const float*)input + (u64)(a.first + token) * a.x_row; },
                (a.stages - a.lent) * a.stage_bytes + warp * KU * 512, table);
        if constexpr (FOLDED<F, COLUMNS>) {
#pragma unroll
            for (int u = 0; u < KU; u++) fold_sums<F>(table + u * L::GROUPS * 32);
        }
        __syncwarp();
        proxy_fence();
        named_arrive<2, THREADS + 32>();
        // A value of bits<0> is QUANTUM.
        inverse[0] *= 1.f / F::QUANTUM, inverse[1] *= 1.f / F::QUANTUM;
        float factor = 1.f;
        if constexpr (NORM) { // the factor of the row applies to the sums; the first set's warps have all of it
            float* shares = (float*)(smem + fixed + L::SHARES);
            if (lane == 0) shares[warp] = set == 0 ? squares : 0.f;
            named_sync<1, THREADS>();
            float total = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) total += shares[w];
            factor = 1.f / sqrtf(total / (float)a.k + norm.eps);
            inverse[0] *= factor, inverse[1] *= factor;
        }
        const u32 row = (set * 16 + g + place / a.piece * height) * a.pitch + place % a.piece * F::UNIT;
        const u32 side = height * a.pitch * max(a.boxes, 1) + (set * 16 + g) * a.side_pitch + place * side_of<F>();
        // Sums are added up while the next group is computed, where they have a buffer of their own then.
        const bool later = a.sums > Matrices::TURNS;
        // Where the sums of a warp go: a buffer, and how often the ring has been gone round.
        struct Place {
            int buffer, round;
            DI void advance(int buffers) {
                if (++buffer == buffers) buffer = 0, round ^= 1;
            }
            // The buffer so many before this one.
            DI int back(int count, int buffers) const {
                int at = buffer - count;
                while (at < 0) at += buffers;
                return at;
            }
        };
        // Adds up the sums of the block's i-th group, which begin in buffer `from`: a warp.
        auto add_up = [&](int i, int from) {
            const float* columns[Matrices::TURNS];
            auto next = [&](int buffer) { return buffer + 1 == a.sums ? 0 : buffer + 1; };
            int at = from, within = CLUSTERED ? begin + i : ring[i & 15];
            const Matrix matrix = matrices.of(within, height, 0);
            // Element o of the group, token height + row, in the output.
            auto index = [&](u32 o) {
                const u32 token = a.m == 1 ? 0 : o / height, r = o - token * height;
                return (u64)(a.first + token) * matrix.n + min(within * height + r, matrix.n - 1);
            };
            const float held = !CLUSTERED && lane < height * a.m ? matrices.before(index(lane)) : 0.f;
#pragma unroll
            for (int turn = 0; turn < Matrices::TURNS; turn++) {
                barrier_sync(FILLED + at, THREADS + 32);
                columns[turn] = all_sums + at * WARPS * strip;
                at = next(at);
            }
#pragma unroll 1
            for (u32 o = lane; o < height * a.m; o += 32) {
                const u32 token = a.m == 1 ? 0 : o / height, r = o - token * height, first = (r >> 4) * a.span * strip + token * 16 + (r & 15);
                float sums[Matrices::TURNS];
#pragma unroll
                for (int turn = 0; turn < Matrices::TURNS; turn++) sums[turn] = 0.f;
#pragma unroll 4
                for (int w = 0; w < a.span; w++)
#pragma unroll
                    for (int turn = 0; turn < Matrices::TURNS; turn++) sums[turn] += columns[turn][first + w * strip];
                if constexpr (PREPARED)
#pragma unroll
                    for (int turn = 0; turn < Matrices::TURNS; turn++) sums[turn] *= Prepared<F>((u8*)input, (a.k + 255) / 256).inverse[token] * (1.f / F::QUANTUM);
                if (CLUSTERED) *(float*)(smem + partial + (i * height * a.m + o) * 4) = sums[0];
                else if (within * height + r < matrix.n) matrices.store(matrix, index(o), sums, o < 32 ? held : matrices.before(index(o)));
            }
#pragma unroll
            for (int turn = 0; turn < Matrices::TURNS; turn++) {
                barrier_arrive(drained(from));
                from = next(from);
            }
        };
        int slot = 0, phase = 0;
        Place to = {0, 0};
#pragma unroll 1
        for (int i = 0;; i++) {
            int group = begin + i;
            bool none = CLUSTERED && group >= end;
#pragma unroll 1
            for (int turn = 0; turn < Matrices::TURNS && !none; turn++) {
                float acc[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
                for (int sub = 0; sub < KU; sub++) {
                    const int start = first_unit + sub * a.span, unit = start + place;
                    if (sub > 0 && start >= units) break;
                    barrier_wait(full(slot), phase);
                    if (!CLUSTERED && sub == 0 && turn == 0) {
                        group = ring[i & 15];
                        if (group >= groups) break;
                    }
                    if (works && unit < units) {
                        const int valid = (int)a.k - unit * 256;
                        const u32 at = slot * a.stage_bytes, sums = table + sub * L::GROUPS * 32;
                        u32 top = at + row, bottom = top + 8 * a.pitch;
                        auto run = [&](auto row0, auto row1) {
                            row0.scales = smem + at + side + (start * side_of<F>() & 15), row1.scales = row0.scales + 8 * a.side_pitch;
                            row0.biases = row0.scales + height * a.side_pitch, row1.biases = row1.scales + height * a.side_pitch;
                            if constexpr (ONE) {
                                auto of_group = [&](int i) { return *(const float2*)(smem + sums + 32 * t + 128 * i); };
                                auto fold = [&]() { return g < 2 ? *(const uint4*)(smem + sums + 16 * lane) : make_uint4(0, 0, 0, 0); };
                                multiply_spread<F, decltype(row0)::PAST, TAIL>(row0, row1, t, b[sub], own, of_group, fold, valid, acc);
                            } else multiply_unit<F, decltype(row0)::PAST, TAIL, FOLDED<F, COLUMNS>>(row0, row1, t, b[sub], sums, valid, acc);
                        };
                        if constexpr (RAGGED) {
                            int within = group;
                            const Matrix matrix = matrices.of(within, height, turn);
                            const u64 from = (u64)(matrix.weights + start * F::UNIT);
                            const u32 weight_row = within * height + set * 16 + g;
                            top += (u32)(from + min(weight_row, matrix.n - 1) * a.w_row) & 15;
                            bottom += (u32)(from + min(weight_row + 8, matrix.n - 1) * a.w_row) & 15;
                            run(Row<-1>{smem + (top & ~3u), 8 * (top & 3)}, Row<-1>{smem + (bottom & ~3u), 8 * (bottom & 3)});
                        } else if constexpr (F::UNIT % 4 == 0) run(Row<0>{smem + top}, Row<0>{smem + bottom});
                        else if (place & 1) run(Row<16>{smem + top - 2}, Row<16>{smem + bottom - 2});
                        else run(Row<0>{smem + top}, Row<0>{smem + bottom});
                    }
                    __syncwarp();
                    if (lane == 0) barrier_arrive(empty(slot));
                    if (++slot == a.stages) slot = 0, phase ^= 1;
                }
                none = !CLUSTERED && group >= groups;
                if (none) break;
                barrier_wait(drained(to.buffer), to.round ^ 1);
                float* mine = all_sums + (to.buffer * WARPS + warp) * strip;
                if constexpr (ONE) {
                    const float sum = sum_of_quad(acc, t);
                    if (t < 2) mine[8 * t + g] = sum * inverse[0];
                } else if constexpr (!PREPARED) {
                    if (t < a.m) mine[t * 16 + g] = (acc[0] + acc[1]) * inverse[0], mine[t * 16 + g + 8] = (acc[2] + acc[3]) * inverse[0];
                } else {
                    if (2 * t < a.m) mine[2 * t * 16 + g] = acc[0], mine[2 * t * 16 + g + 8] = acc[2];
                    if (2 * t + 1 < a.m) mine[(2 * t + 1) * 16 + g] = acc[1], mine[(2 * t + 1) * 16 + g + 8] = acc[3];
                }
                __syncwarp();
                barrier_join(FILLED + to.buffer, THREADS + 32);
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
        const Matrix matrix = matrices.of(group, height, 0);
        auto row = [&](u32 o) { return (begin + o / (height * a.m)) * height + o % height; };
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

// y [m, n] = x [m, k] times the weight's rows; x f32, or prepared rows. Where there is a residual, sums = residual + y.
template <class F, int KU, Columns COLUMNS, bool CLUSTERED, bool TAIL, bool RAGGED>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_mv(const u8* weights, const void* x, float* y, const __grid_constant__ HopperRowArgs args, const float* residual, float* sums,
             const __grid_constant__ TensorMap map, const __grid_constant__ Ahead ahead) {
    matvec<F, KU, COLUMNS, CLUSTERED, TAIL, RAGGED, false>(OneMatrix{{weights, y, args.n, &map}, residual, sums}, x, nullptr, nullptr, args, {}, ahead);
}
// The same for up to three matrices of one format and as many columns: y0 = x w0, y1 = x w1, y2 = x w2. With NORM the input is x normed.
template <class F, int KU, Columns COLUMNS, bool TAIL, bool RAGGED, bool NORM>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1) hopper_mv_group(const u8* w0, const u8* w1, const u8* w2, const void* x, float* y0, float* y1, float* y2,
                                                                       const __grid_constant__ HopperRowArgs args, u32 n1, u32 n2, const float* norm_weight, float* normed, float eps,
                                                                       const __grid_constant__ TensorMap map0, const __grid_constant__ TensorMap map1, const __grid_constant__ TensorMap map2,
                                                                       const __grid_constant__ Ahead ahead) {
    matvec<F, KU, COLUMNS, false, TAIL, RAGGED, NORM>(ThreeMatrices{{{w0, y0, args.n, &map0}, {w1, y1, n1, &map1}, {w2, y2, n2, &map2}}}, x, nullptr, nullptr, args, {norm_weight, normed, eps}, ahead);
}
// The same for a gated pair.
template <class F, int KU, Columns COLUMNS, bool TAIL, bool RAGGED, bool NORM>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1) hopper_mv_gated(const u8* w0, const u8* w1, const void* x, float* y0, float* y1, const __grid_constant__ HopperRowArgs args,
                                                                       u32 activation, const float* norm_weight, float* normed, float eps, const __grid_constant__ TensorMap map0,
                                                                       const __grid_constant__ TensorMap map1, const __grid_constant__ Ahead ahead) {
    matvec<F, KU, COLUMNS, false, TAIL, RAGGED, NORM>(GatedMatrices{{w0, y0, args.n, &map0}, {w1, y1, args.n, &map1}, activation}, x, nullptr, nullptr, args, {norm_weight, normed, eps}, ahead);
}
// The same for affine formats: boxes of a stage's rows x side_pitch bytes of scales and biases.
template <class F, int KU, Columns COLUMNS, bool CLUSTERED, bool TAIL, bool RAGGED>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_mv_affine(const u8* weights, const void* x, float* y, const __grid_constant__ HopperRowArgs args, const float* residual, float* sums, const __grid_constant__ TensorMap map,
                     const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases, const __grid_constant__ Ahead ahead) {
    matvec<F, KU, COLUMNS, CLUSTERED, TAIL, RAGGED, false>(OneMatrix{{weights, y, args.n, &map}, residual, sums}, x, &scales, &biases, args, {}, ahead);
}

// Rows [first, first + m) of x f32 [.., k] as halves for one launch, scaled by a power of two each; a block takes one, with 512 bytes of shared memory for each unit.
template <class F> __global__ void __launch_bounds__(512) hopper_prepare_rows(const float* x, u8* to, const __grid_constant__ HopperRowArgs a) {
    launch_dependents();
    const int units = (a.k + 255) / 256;
    const Prepared<F> out(to, units);
    constexpr int THREADS = 512, HELD = 4;
    wait_for_predecessor();
    const float4* row = (const float4*)(x + (u64)(a.first + blockIdx.x) * a.x_row);
    float4 v[HELD];
    auto load = [&](int base) {
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            const u32 i = base + j * THREADS + threadIdx.x;
            v[j] = 4 * i < a.k ? row[i] : make_float4(0.f, 0.f, 0.f, 0.f);
        }
    };
    float largest = 0.f;
    for (int base = 0; base < units * 64; base += HELD * THREADS) {
        load(base);
#pragma unroll
        for (int j = 0; j < HELD; j++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[j].x), fabsf(v[j].y)), fmaxf(fabsf(v[j].z), fabsf(v[j].w))));
    }
    float scale, back;
    power_of_two(largest_of_block(largest), scale, back);
    if (threadIdx.x == 0) out.inverse[blockIdx.x] = back;
    // A thread's four values have the same places in every unit it meets.
    u32 at[4];
    float lower[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int place = F::place(4 * (threadIdx.x & 63) + e);
        at[e] = place * 2;
        lower[e] = __uint_as_float((u32)(127 - F::shift(place >> 4)) << 23);
    }
    const int lane = threadIdx.x & 31, slot = slot_of_group<F>((threadIdx.x & 63) >> 2);
    for (int base = 0; base < units * 64; base += HELD * THREADS) {
        if (units * 64 > HELD * THREADS) load(base);
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            const int i = base + j * THREADS + threadIdx.x;
            const float f[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
            float sum = 0.f;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float value = low_half(pack_halves(f[e] * scale, 0.f));
                sum += value;
                if (i < units * 64) *(u16*)(smem + (i >> 6) * 512 + at[e]) = (u16)pack_halves(value * lower[e], 0.f);
            }
            if constexpr (F::OFFSET != 0 || F::MINIMUM) {
                sum = sum_of_group<F, FOLDED<F, EIGHT_ROWS>>(sum);
                if (lane % (F::SUB / 4) == 0 && i < units * 64) out.sums[((i >> 6) * Prepared<F>::GROUPS + slot) * 8 + blockIdx.x] = sum;
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < units * 32; i += THREADS) {
        const int unit = i >> 5, pair = i >> 2 & 7, t = i & 3;
        const uint2* from = (const uint2*)(smem + unit * 512 + pair * 64 + t * 8);
        out.operands[(unit * 8 + pair) * 32 + blockIdx.x * 4 + t] = make_uint4(from[0].x, from[0].y, from[4].x, from[4].y);
    }
}
