// Many rows of x times a quantized matrix on the tensor cores.
//
// A block computes 64 MI GROUPS weight rows x NT rows of x: each of GROUPS warpgroups takes 64 MI weight rows, dequantized into registers as the left
// operand, chunk by chunk (64 values of k) one ahead of the tensor cores; the prepared x (halves, in the order of F::place) comes through
// shared memory, and in clusters of two each block fetches half of it for both. Blocks are persistent. Work is counted in units of 256
// values of k: first every cluster gets an equal run of units over the tiles that would not fill a whole wave, then whole tiles. Where a
// run ends inside a tile, the clusters with the later units store their sums and raise a flag, and the one with the first units adds them in
// order: the same bits every time.

constexpr int MOST_BLOCKS = 256, MOST_GROUPS = 4;
// Raised when a block's sums lie in the held memory, for each of its warpgroups; zero before and after a launch.
__device__ u32 held_flags[MOST_GROUPS * MOST_BLOCKS];

// STAGED: sums go to the output through shared memory. RAGGED: rows of weights start anywhere.
template <class F, int GROUPS, int MI, int NT, bool STAGED, bool RAGGED> struct MatMulLayout {
    // Copies start on 16 bytes: a unit may start later than that, at the same place in all rows or, in ragged ones, anywhere.
    static constexpr int PAST = RAGGED ? 16 : F::UNIT % 16 == 0 ? 0 : F::UNIT % 8 == 0 ? 8 : F::UNIT % 4 == 0 ? 12 : 14;
    static constexpr int ROWS = 64 * MI * GROUPS, PITCH = pitch_of(F::UNIT + PAST), SIDE_PITCH = up(side_of<F>(), 16);
    static constexpr int CHUNK_BYTES = NT * 128, W_BYTES = up(ROWS * PITCH, 128) + 2 * ROWS * SIDE_PITCH;
    static constexpr int ROOM = SHARED_LIMIT - 512;
    DI static constexpr int least(int a, int b) { return a < b ? a : b; }
    // Narrow tiles are bound by memory: as many stages of weights as leave two units of x, and a stage of x is a unit, so that short
    // products wait less often. Where that leaves less than three, six chunks have to do.
    static constexpr int CHUNKS = NT <= 64 && (ROOM - 8 * CHUNK_BYTES) / W_BYTES > 2 ? 4 : 1, X_BYTES = CHUNKS * CHUNK_BYTES;
    static constexpr int MANY = NT <= 64 ? least((ROOM - (CHUNKS == 4 ? 8 : 6) * CHUNK_BYTES) / W_BYTES, 5) : 0;
    // Staged: two stages of weights and four of x. What they leave are pieces of the output of 32 rows of x, or of 16 where each warpgroup would have less than three.
    static constexpr int W_STAGES = STAGED ? 2 : MANY > 2 ? MANY : (ROOM - 3 * W_BYTES) / X_BYTES >= 4 ? 3 : 2;
    static constexpr int X_STAGES = STAGED ? 4 : least((ROOM - W_STAGES * W_BYTES) / X_BYTES, 8), LEFT = ROOM - W_STAGES * W_BYTES - X_STAGES * X_BYTES;
    static constexpr int PIECE = LEFT >= 3 * GROUPS * 32 * 256 ? 32 : 16, PIECE_BYTES = PIECE * 64 * 4, PIECES = STAGED ? least(LEFT / (GROUPS * PIECE_BYTES), 8) : 0;
    static constexpr int X = 0, STORE = X_STAGES * X_BYTES, W = STORE + GROUPS * PIECES * PIECE_BYTES, X_FULL = W + W_STAGES * W_BYTES, X_EMPTY = X_FULL + 8 * X_STAGES,
                         W_FULL = X_EMPTY + 8 * X_STAGES, W_EMPTY = W_FULL + 8 * W_STAGES;
    static constexpr int BYTES = W_EMPTY + 8 * W_STAGES;
    // The sums of a block, and the chunks of x that they fill.
    static constexpr int PART_BYTES = ROWS * NT * 4, PART_CHUNKS = PART_BYTES / CHUNK_BYTES;
    static_assert(X_STAGES * CHUNKS >= 3 && (!STAGED || PIECES >= 2) && BYTES <= SHARED_LIMIT, "stages");
};

constexpr u32 half_of_integer(int v) { // for |v| < 2048, both halves
    int a = v < 0 ? -v : v, e = 0;
    while ((a >> e) > 1) e++;
    const u32 h = a == 0 ? 0 : (v < 0 ? 0x8000u : 0u) | (u32)(e + 15) << 10 | ((u32)(a << (10 - e)) & 0x3ff);
    return h * 0x10001u;
}

// The left operand of a chunk: 64 values of a row as half-precision weights; with TAIL, those from `valid` on are zero.
template <class F, bool TAIL, class R> DI void chunk_weights(const R& row, int c, int t, u32 (&a)[4][4], int bottom, int reference, int valid) {
    const typename F::Head head = F::head(row);
    u32 q[4][2];
    F::template bits<HALF_1024>(row, head, c, t, q);
    constexpr int STEPS = F::SUB / 16;
    constexpr float LIFTED = (float)(1 << F::LIFT);
    float unit = LIFTED, unit_low = LIFTED;
    if constexpr (F::UNIT_SCALE) unit = F::unit_scale(head);
    if constexpr (F::UNIT_SCALE && F::MINIMUM) unit_low = F::unit_minimum(head);
#pragma unroll
    for (int j = 0; j < 4 / STEPS; j++) {
        u32 scale;
        if constexpr (F::RANGED) scale = F::ranged_scale(row, c, j, reference);
        else if constexpr (F::HALVES) scale = F::half_scale(row, head, c, j);
        else {
            const float s = F::scale(row, head, c, j) * unit;
            scale = pack_halves(s, s);
        }
        u32 minimum = 0;
        if constexpr (F::MINIMUM && F::HALVES) minimum = F::half_minimum(row, head, c, j);
        else if constexpr (F::MINIMUM) {
            const float low = F::minimum(row, head, c, j) * unit_low;
            minimum = pack_halves(low, low);
        }
        if (TAIL && F::SUB * j >= valid) scale = minimum = 0;
#pragma unroll
        for (int i = j * STEPS; i < (j + 1) * STEPS; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int shift = F::shift(4 * c + i);
                u32 v = q[i][r];
                if constexpr (!F::TRUE_HALVES) {
                    const u32 less = half_of_integer(-(1024 >> shift) - F::OFFSET);
                    v = shift ? hfma2(v, (u32)(15 - shift) * 0x04000400u, less) : hadd2(v, less);
                }
                a[i][2 * r + bottom] = F::MINIMUM ? hfma2(v, scale, minimum) : hmul2(v, scale);
            }
    }
}

// The units of a cluster, numbered from 0: `shared` of the tiles that several clusters share, from `begin` on, then whole tiles.
struct Schedule {
    int begin, shared, total, shared_tiles, sharing, clusters, cluster, units;
    DI Schedule(int tiles, int units_, int clusters_, int cluster_) : clusters(clusters_), cluster(cluster_), units(units_) {
        // Sharing costs about as much as three units; a last wave that is nearly full had better stay whole. With few tiles all are shared: clusters then
        // stand at different places of k and do not all ask for the same part of x at once.
        const int last = tiles % clusters;
        shared_tiles = last == 0 || (clusters - last) * units <= 3 * clusters ? 0 : all_shared(tiles, clusters) ? tiles : min(tiles, clusters + last);
        // Every sharing cluster has a unit at least, so that each tile's later units are those of the clusters that follow.
        sharing = min(clusters, shared_tiles * units);
        begin = first(cluster), shared = first(cluster + 1) - begin;
        const int rest = tiles - shared_tiles;
        total = shared + (rest > cluster ? (rest - cluster - 1) / clusters + 1 : 0) * units;
    }
    DI static bool all_shared(int tiles, int clusters) { return tiles <= 8 * clusters; }
    // The first shared unit of cluster c.
    DI int first(int c) const { return (int)((long long)shared_tiles * units * min(c, sharing) / max(sharing, 1)); }
    // The cluster that has the last unit of a shared tile.
    DI int holder(int tile) const {
        int c = cluster;
        while (first(c + 1) < (tile + 1) * units) c++;
        return c;
    }
    // Tile and unit within it of number v.
    DI void at(int v, int& tile, int& unit) const {
        if (v < shared) tile = (begin + v) / units, unit = (begin + v) % units;
        else tile = shared_tiles + (v - shared) / units * clusters + cluster, unit = (v - shared) % units;
    }
    // Whether number v starts another tile than v - 1, or may.
    DI bool jumps(int v, int unit) const { return unit == units || v == shared; }
    // Where the run of units of one tile that starts at v ends.
    DI int run_end(int v, int unit) const { return min(v + units - unit, v < shared ? shared : total); }
};

// What the rows of a routed product belong to.
struct Routing {
    const uint4* tiles; // expert, first place in `lists`, places; those without places come last
    const u32* lists;   // the slots of each expert, one list after the other
    u32 n_tiles;
};
// A tile: matrix, weight rows by whole tiles, first row of the prepared x, rows of x.
struct Tile {
    int matrix, row_tile, token, tokens;
};

template <class F, int GROUPS, int MI, int NT, int CLUSTER, bool ROUTED, bool RAGGED>
DI void multiply_tiles(const TensorMap* weights, const TensorMap* x, const TensorMap* scales, const TensorMap* biases, const TensorMap* output, const float* inverse, float* y, float4* sums,
                       const HopperTileArgs& a, const Routing& routing) {
    constexpr bool STAGED = !ROUTED && NT == 256;
    using L = MatMulLayout<F, GROUPS, MI, NT, STAGED, RAGGED>;
    const u32 shared = shared_address(0);
    const u32 x_full = shared + L::X_FULL, x_empty = shared + L::X_EMPTY, w_full = shared + L::W_FULL, w_empty = shared + L::W_EMPTY;
    u32 rank = 0;
    if (CLUSTER > 1) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::X_STAGES; i++) barrier_init(x_full + 8 * i, 1), barrier_init(x_empty + 8 * i, 4 * GROUPS * CLUSTER);
        for (int i = 0; i < L::W_STAGES; i++) barrier_init(w_full + 8 * i, 1), barrier_init(w_empty + 8 * i, 4 * GROUPS);
        barriers_ready();
    }
    auto cluster_sync = [&]() {
        if (CLUSTER > 1) asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
        else __syncthreads();
    };
    if (threadIdx.x == 32) prefetch_map(weights), prefetch_map(x);
    cluster_sync();
    launch_dependents();
    int token_tiles = (a.m + NT - 1) / NT;
    if (ROUTED) {
        wait_for_predecessor();
        token_tiles = 0;
        for (u32 base = 0; base < routing.n_tiles; base += blockDim.x) token_tiles += __syncthreads_count(base + threadIdx.x < routing.n_tiles && routing.tiles[base + threadIdx.x].z > 0);
    }
    const int row_tiles = (a.n + L::ROWS * CLUSTER - 1) / (L::ROWS * CLUSTER), tiles = token_tiles * row_tiles, clusters = gridDim.x / CLUSTER;
    // Where all tiles are shared, neighbours work on the same rows of x; else on the same weights, which they so read from memory once.
    const bool by_rows = Schedule::all_shared(tiles, clusters);
    auto tile_of = [&](int tile) {
        const int row_tile = by_rows ? tile % row_tiles : tile / token_tiles, token_tile = by_rows ? tile / row_tiles : tile % token_tiles;
        if (!ROUTED) return Tile{0, row_tile, token_tile * NT, (int)a.m - token_tile * NT};
        const uint4 t = routing.tiles[token_tile];
        return Tile{(int)t.x, row_tile, (int)t.y, (int)t.z};
    };
    const Schedule work(tiles, a.units, clusters, blockIdx.x / CLUSTER);

    if (threadIdx.x < 128) {
        // What these leave is what the others take: 168 x 384, 128 x 512 or 96 x 640 registers are all that a block has.
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 40 : 32));
        if (threadIdx.x == 0) {
            int slot = 0, phase = 1;
            wait_for_predecessor();
            auto stage = [&](int bytes) {
                barrier_wait(x_empty + 8 * slot, phase);
                barrier_expect(x_full + 8 * slot, bytes);
                return shared + L::X + slot * L::X_BYTES;
            };
            auto advance = [&]() {
                if (++slot == L::X_STAGES) slot = 0, phase ^= 1;
            };
#pragma unroll 1
            for (int v = 0; v < work.total;) {
                int tile, unit;
                work.at(v, tile, unit);
                const int end = work.run_end(v, unit), token = tile_of(tile).token + rank * (NT / CLUSTER);
                const bool incomplete = unit == 0 && end - v != (int)a.units;
#pragma unroll 1
                for (; v < end; v++, unit++)
#pragma unroll 1
                    for (int c = 0; c < 4; c += L::CHUNKS) {
                        const u32 to = stage(L::X_BYTES) + rank * (L::CHUNK_BYTES / CLUSTER);
#pragma unroll
                        for (int i = 0; i < L::CHUNKS; i++) {
                            if (CLUSTER > 1) tile_multicast(to + i * L::CHUNK_BYTES, x, unit * 256 + (c + i) * 64, token, x_full + 8 * slot, (1 << CLUSTER) - 1);
                            else tile_copy(to + i * L::CHUNK_BYTES, x, unit * 256 + (c + i) * 64, token, x_full + 8 * slot);
                        }
                        advance();
                    }
                if (!incomplete) continue;
                // The rest of the tile is what the next clusters have summed: it comes through the same stages.
                const int last = work.holder(tile);
#pragma unroll 1
                for (int c = work.cluster + 1; c <= last; c++) {
                    const u32 block = c * CLUSTER + rank;
#pragma unroll 1
                    for (int group = 0; group < GROUPS; group++) {
                        u32* flag = held_flags + block * GROUPS + group;
                        u32 raised;
                        do asm volatile("ld.acquire.gpu.b32 %0, [%1];" : "=r"(raised) : "l"(flag) : "memory");
                        while (raised == 0);
                        *flag = 0;
                    }
                    memory_fence();
#pragma unroll 1
                    for (int from = 0; from < L::PART_BYTES; from += L::X_BYTES) {
                        const int bytes = min(L::X_BYTES, L::PART_BYTES - from);
                        const u32 to = stage(bytes);
                        bulk_copy(to, (const u8*)sums + (u64)block * L::PART_BYTES + from, bytes, x_full + 8 * slot, evict_first_policy());
                        advance();
                    }
                }
            }
        } else if (threadIdx.x == 32) {
            int slot = 0, phase = 1, tile, unit = 0, row = 0, matrix = 0;
            if (a.moved) wait_for_predecessor();
            auto copy = [&](u32 to, const TensorMap* map, int at, u32 bar) {
                if (ROUTED) tile_copy(to, map, at, row, matrix, bar);
                else tile_copy(to, map, at, row, bar);
            };
#pragma unroll 1
            for (int v = 0; v < work.total; v++, unit++) {
                if (v == 0 || work.jumps(v, unit)) {
                    work.at(v, tile, unit);
                    const Tile t = tile_of(tile);
                    row = (t.row_tile * CLUSTER + rank) * L::ROWS, matrix = t.matrix;
                }
                const u32 to = shared + L::W + slot * L::W_BYTES;
                barrier_wait(w_empty + 8 * slot, phase);
                barrier_expect(w_full + 8 * slot, L::ROWS * (L::PITCH + 2 * L::SIDE_PITCH));
                if constexpr (RAGGED) {
                    // Eight rows are a multiple of 16 bytes, and one row of the map: a copy takes every eighth row of 64.
#pragma unroll 1
                    for (int i = 0; i < L::ROWS / 8; i++)
                        tile_copy(to + 8 * i * L::PITCH, weights, ((i & 7) * a.w_row + unit * F::UNIT & ~15) / 2, row / 8 + (i & ~7), w_full + 8 * slot);
                } else copy(to, weights, (unit * F::UNIT & ~15) / 2, w_full + 8 * slot);
                if constexpr (F::AFFINE) {
                    const u32 side = to + up(L::ROWS * L::PITCH, 128);
                    copy(side, scales, (unit * F::SIDE & ~15) / 2, w_full + 8 * slot);
                    copy(side + L::ROWS * L::SIDE_PITCH, biases, (unit * F::SIDE & ~15) / 2, w_full + 8 * slot);
                }
                if (++slot == L::W_STAGES) slot = 0, phase ^= 1;
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 232 : GROUPS == 3 ? 160 : 112));
        const int group = (threadIdx.x >> 7) - 1, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, t = lane & 3;
        // This lane's two weight rows of every 64 are neighbours, so that their sums are stored together: 2 g + (0 or 1) for the operand's row g and 2 g + (1 or 0) for its
        // row g + 8. Swapping them in the upper half makes eight lanes' rows fall into different banks. Ragged rows lie eight apart, and a warp has two of the eight sorts.
        const int swapped = RAGGED ? 0 : g >> 2, within_64 = RAGGED ? 8 * g + 2 * warp : warp * 16 + 2 * g, mine = group * 64 * MI + within_64;
        // Where they lie in a stage.
        const int top_row = group * 64 * MI + (RAGGED ? warp * 16 + g : warp * 16 + 2 * g + swapped), other = RAGGED ? 8 : swapped ? -1 : 1;
        float acc[MI][NT / 2];
        u32 left[2][4][4];
        int xs = 0, x_phase = 0, ws = 0, w_phase = 0, used = -1;
        int tile_ahead, unit_ahead; // of the unit that is being dequantized
        work.at(0, tile_ahead, unit_ahead);
        // The references of this lane's rows, for the sums and for the unit that is being dequantized, where a format has some.
        int references[MI][2] = {}, references_ahead[MI][2] = {};
        bool rescale = false;
        auto row_of = [&](int mi, int which) { return L::W + ws * L::W_BYTES + (top_row + 64 * mi + which * other) * L::PITCH; };
        // How far past its place in a stage a row of the unit ahead starts.
        auto past = [&](int which) { return L::PAST ? (RAGGED ? (2 * warp + which) * a.w_row + (u32)unit_ahead * F::UNIT : (u32)unit_ahead * F::UNIT) & 15 : 0; };
        auto valid_ahead = [&]() { return RAGGED ? (int)a.k - 256 * unit_ahead : 256; };
        // Looks at the exponents of the unit ahead. A new run of units starts with its own references; within one they grow where they must, and the
        // sums are scaled down before the products that need it.
        auto look_ahead = [&](bool new_run) {
            if constexpr (F::RANGED) {
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int which = 0; which < 2; which++) {
                        const int largest = F::largest_exponent(Row<0>{smem + row_of(i, which) + past(which)}, t, valid_ahead());
                        if (new_run || largest > references_ahead[i][which] + F::HEADROOM + F::MOST) references_ahead[i][which] = largest, rescale = !new_run;
                    }
                rescale = __any_sync(~0u, rescale);
            }
        };
        auto dequantize = [&](int buffer, int c, int mi) {
            const int valid = valid_ahead() - 64 * c;
            auto run = [&](auto top, auto bottom) {
                if constexpr (F::AFFINE) {
                    top.scales = smem + L::W + ws * L::W_BYTES + up(L::ROWS * L::PITCH, 128) + (top_row + 64 * mi) * L::SIDE_PITCH + ((u32)unit_ahead * F::SIDE & 15);
                    bottom.scales = top.scales + other * L::SIDE_PITCH;
                    top.biases = top.scales + L::ROWS * L::SIDE_PITCH, bottom.biases = bottom.scales + L::ROWS * L::SIDE_PITCH;
                }
                chunk_weights<F, RAGGED>(top, c, t, left[buffer], 0, references_ahead[mi][0], valid);
                chunk_weights<F, RAGGED>(bottom, c, t, left[buffer], 1, references_ahead[mi][1], valid);
            };
            const u32 first = row_of(mi, 0) + past(0);
            if constexpr (RAGGED) {
                // Bytes of a row are even: the upper row of a lane, an even one of eight, starts on a word where the unit does, the lower one there or two bytes on.
                const u32 second = row_of(mi, 1) + past(1);
                auto with = [&](auto top) {
                    if (second & 2) run(top, Row<16>{smem + second - 2});
                    else run(top, Row<0>{smem + second});
                };
                if (F::UNIT % 4 && first & 2) with(Row<16>{smem + first - 2});
                else with(Row<0>{smem + first});
            } else {
                auto pair = [&](auto top) { run(top, top.moved(other * L::PITCH)); };
                // Pitches are multiples of 16: all rows of a unit start on a word, or two bytes past one.
                if (F::UNIT % 4 && first & 2) pair(Row<16>{smem + first - 2});
                else pair(Row<0>{smem + first});
            }
        };
        auto release = [&](int stage) {
            if (lane == 0) {
                if (CLUSTER > 1) {
                    for (int r = 0; r < CLUSTER; r++) barrier_arrive_in_cluster(x_empty + 8 * stage, r);
                } else barrier_arrive(x_empty + 8 * stage);
            }
        };
        // Pieces of sums leave through a ring of buffers: all threads of a warpgroup fill one, the issuer copies it. It waits until the next one has been read before
        // it lets the others go on.
        const bool issuer = (threadIdx.x & 127) == 0;
        int piece = 0;
        auto put = [&](auto fill, auto copy) {
            if constexpr (STAGED) {
                const u32 at = L::STORE + (group * L::PIECES + piece) * L::PIECE_BYTES;
                fill(at);
                proxy_fence();
                if (issuer) stores_read<L::PIECES - 2>();
                asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory");
                if (issuer) copy(shared + at), stores_commit();
                if (++piece == L::PIECES) piece = 0;
            }
        };
        // The flag of a part that is still on its way is raised before the next sums leave, or at the end.
        bool owed = false;
        auto raise = [&]() {
            if (owed && issuer) {
                if (STAGED) stores_done();
                memory_fence();
                asm volatile("st.release.gpu.b32 [%0], %1;" ::"l"(held_flags + blockIdx.x * GROUPS + group), "r"(1) : "memory");
            }
            owed = false;
        };
        if (work.total > 0) {
            barrier_wait(w_full, 0);
            look_ahead(true);
            dequantize(0, 0, 0);
        }
        wait_for_predecessor();
        int v = 0;
        while (v < work.total) {
            int tile, unit;
            work.at(v, tile, unit);
            const int end = work.run_end(v, unit);
            const bool later = unit != 0, incomplete = unit + (end - v) != (int)a.units;
            // What undoes the scaling of rows 64 q + 2 lane and the one after, and where they go, fetched once: loads between the stores would wait for one another.
            constexpr int SHARE = NT < 64 ? 1 : NT / 64;
            Tile here;
            float back[SHARE][2];
            u32 slots[SHARE][2];
            auto look_up = [&]() {
                here = tile_of(tile);
#pragma unroll
                for (int q = 0; q < SHARE; q++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int within = 64 * q + 2 * lane + e;
                        back[q][e] = within < min(here.tokens, NT) ? inverse[here.token + within] : 0.f;
                        slots[q][e] = ROUTED && within < min(here.tokens, NT) ? routing.lists[here.token + within] : 0;
                    }
            };
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NT / 2; j++) acc[i][j] = 0.f;
            if constexpr (F::RANGED) {
#pragma unroll
                for (int i = 0; i < MI; i++) references[i][0] = references_ahead[i][0], references[i][1] = references_ahead[i][1];
            }
            // One loop over the run's units, or several between which sums are scaled: nothing may happen to them within.
            while (true) {
#pragma unroll 1
            do {
#pragma unroll
                for (int c = 0; c < 4; c++)
#pragma unroll
                    for (int mi = 0; mi < MI; mi++) {
                        const int buffer = MI == 1 ? c & 1 : mi;
                        constexpr int LAST = L::CHUNKS - 1;
                        if (mi == 0 && (c & LAST) == 0) barrier_wait(x_full + 8 * xs, x_phase);
                        const u64 right = operand_of(shared + L::X + xs * L::X_BYTES + (c & LAST) * L::CHUNK_BYTES);
                        warpgroup_fence();
#pragma unroll
                        for (int s = 0; s < 4; s++) warpgroup_mma<NT>(acc[mi], left[buffer][s], right + 2 * s);
                        warpgroup_commit();
                        warpgroup_wait<1>();
                        if (mi == 0 && (c & LAST) == 0 && used >= 0) release(used);
                        // The chunk after this one, while the tensor cores work on this one.
                        const int next_mi = (mi + 1) % MI, next_c = next_mi ? c : c + 1;
                        if (next_c == 4) {
                            __syncwarp();
                            if (lane == 0) barrier_arrive(w_empty + 8 * ws);
                            if (++ws == L::W_STAGES) ws = 0, w_phase ^= 1;
                            if (v + 1 < work.total) barrier_wait(w_full + 8 * ws, w_phase);
                            if (L::PAST || F::AFFINE) {
                                unit_ahead++;
                                if (work.jumps(v + 1, unit_ahead)) work.at(v + 1, tile_ahead, unit_ahead);
                            }
                            look_ahead(v + 1 == end);
                        }
                        dequantize(buffer ^ 1, next_c & 3, next_mi);
                        if (mi == MI - 1 && (c & LAST) == LAST) {
                            used = xs;
                            if (++xs == L::X_STAGES) xs = 0, x_phase ^= 1;
                        }
                    }
            } while (++v < end && !(F::RANGED && rescale));
            if (!F::RANGED || v >= end) break;
            if constexpr (F::RANGED) {
                warpgroup_wait<0>();
                rescale = false;
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int which = 0; which < 2; which++) {
                        const float down = __uint_as_float((u32)max(references[i][which] - references_ahead[i][which] + 127, 0) << 23);
                        references[i][which] = references_ahead[i][which];
#pragma unroll
                        for (int j = 0; j < NT / 8; j++) acc[i][4 * j + 2 * which] *= down, acc[i][4 * j + 2 * which + 1] *= down;
                    }
            }
            }
            look_up();
            warpgroup_wait<0>();
            release(used), used = -1;
            raise();
            if constexpr (F::RANGED) {
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int which = 0; which < 2; which++) {
                        const float whole = F::of_reference(references[i][which]);
#pragma unroll
                        for (int j = 0; j < NT / 8; j++)
#pragma unroll
                            for (int e = 0; e < 2; e++) acc[i][4 * j + 2 * which + e] *= whole;
                    }
            }
            const u32 row0 = (here.row_tile * CLUSTER + rank) * L::ROWS + mine;
            constexpr int QUADS = MI * NT / 8; // of sums in a thread
            if (later) { // the block that has the tile's first units adds these
                float4* held = sums + (u64)(blockIdx.x * GROUPS + group) * QUADS * 128;
                auto quad = [&](int q) {
                    const float* s = &acc[q / (NT / 8)][4 * (q % (NT / 8))];
                    return make_float4(s[0], s[1], s[2], s[3]);
                };
                if constexpr (STAGED) {
                    const u64 keep = evict_last_policy(); // they are read when much else has passed
                    constexpr int EACH = L::PIECE / 8;
#pragma unroll
                    for (int q = 0; q < QUADS; q += EACH)
                        put(
                            [&](u32 at) {
#pragma unroll
                                for (int e = 0; e < EACH; e++) *(float4*)(smem + at + e * 2048 + (threadIdx.x & 127) * 16) = quad(q + e);
                            },
                            [&](u32 at) { bulk_store(held + q * 128, at, L::PIECE_BYTES, keep); });
                } else {
#pragma unroll
                    for (int q = 0; q < QUADS; q++) __stcg(held + q * 128 + (threadIdx.x & 127), quad(q));
                    __threadfence();
                    asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory");
                }
                owed = true;
                if (!STAGED) raise();
                continue;
            }
            if (incomplete) {
                const int last = work.holder(tile);
#pragma unroll 1
                for (int c = work.cluster + 1; c <= last; c++)
#pragma unroll 1
                    for (int from = 0; from < GROUPS; from++)
#pragma unroll
                        for (int s = 0; s < 2 * MI; s++) {
                            const int chunk = from * 2 * MI + s, in_stage = chunk & L::CHUNKS - 1;
                            if (in_stage == 0) barrier_wait(x_full + 8 * xs, x_phase);
                            if (from == group) {
#pragma unroll
                                for (int e = 0; e < NT / 16; e++) {
                                    const float4 more = *(const float4*)(smem + L::X + xs * L::X_BYTES + in_stage * L::CHUNK_BYTES + e * 2048 + (threadIdx.x & 127) * 16);
                                    float* to = &acc[s / 2][4 * (s % 2 * (NT / 16) + e)];
                                    to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
                                }
                            }
                            if (in_stage < L::CHUNKS - 1 && chunk < L::PART_CHUNKS - 1) continue;
                            __syncwarp();
                            release(xs);
                            if (++xs == L::X_STAGES) xs = 0, x_phase ^= 1;
                        }
            }
            if (STAGED && a.staged) {
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int p = 0; p < NT / L::PIECE; p++)
                        put(
                            [&](u32 at) {
                                // Rows of 128 bytes, 32 features of a row of x each; 16 bytes are where the copy's swizzle expects them.
                                const u32 chunk = within_64 >> 2 & 7, in_chunk = (within_64 & 3) * 4, half = within_64 >> 5;
#pragma unroll
                                for (int q = 0; q < L::PIECE / 8; q++)
#pragma unroll
                                    for (int e = 0; e < 2; e++) {
                                        const int j = p * (L::PIECE / 8) + q, row = 8 * q + 2 * t + e;
                                        const float factor = __shfl_sync(~0u, back[j >> 3][e], (4 * j + t) & 31);
                                        const float first = acc[i][4 * j + e] * factor, second = acc[i][4 * j + 2 + e] * factor;
                                        *(float2*)(smem + at + (half * L::PIECE + row) * 128 + (chunk ^ row & 7) * 16 + in_chunk) = swapped ? make_float2(second, first) : make_float2(first, second);
                                    }
                            },
                            [&](u32 at) { tile_store(output, 0, here.token + p * L::PIECE, (row0 - within_64) / 32 + 2 * i, at); });
                continue;
            }
            const bool paired = (a.n & 1) == 0 && ((u64)y & 7) == 0;
#pragma unroll
            for (int j = 0; j < NT / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int within = 8 * j + 2 * t + e, from = (4 * j + t) & 31;
                    const float factor = __shfl_sync(~0u, back[j >> 3][e], from);
                    const u32 slot = ROUTED ? __shfl_sync(~0u, slots[j >> 3][e], from) : here.token + within;
                    if (within >= here.tokens) continue;
                    float* to = y + (u64)slot * a.n + row0;
#pragma unroll
                    for (int i = 0; i < MI; i++) {
                        const float first = acc[i][4 * j + e] * factor, second = acc[i][4 * j + 2 + e] * factor;
                        const float2 both = swapped ? make_float2(second, first) : make_float2(first, second);
                        if (paired) {
                            if (row0 + 64 * i < a.n) *(float2*)(to + 64 * i) = both;
                        } else {
                            if (row0 + 64 * i < a.n) to[64 * i] = both.x;
                            if (row0 + 64 * i + 1 < a.n) to[64 * i + 1] = both.y;
                        }
                    }
                }
        }
        raise();
        if (STAGED && issuer) stores_read<0>();
    }
    if (CLUSTER > 1) cluster_sync(); // no block leaves while the other may still write into its memory
}

// y [m, n] = x times the weight's rows. `sums` has room for ROWS x NT of each block; inverse[i] undoes the scaling of row i of x; `output` is y where sums leave staged.
template <class F, int GROUPS, int MI, int NT, int CLUSTER, bool RAGGED>
__global__ void __launch_bounds__(128 + 128 * GROUPS, 1)
    hopper_mm(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases,
              const __grid_constant__ TensorMap output, const float* inverse, float* y, float4* sums, const __grid_constant__ HopperTileArgs args) {
    multiply_tiles<F, GROUPS, MI, NT, CLUSTER, false, RAGGED>(&weights, &x, &scales, &biases, &output, inverse, y, sums, args, {});
}
// y [slots, n]: each expert's slots times its matrix; x has a row for each place in `lists`.
template <class F, int GROUPS, int MI, int NT>
__global__ void __launch_bounds__(128 + 128 * GROUPS, 1)
    hopper_mm_id(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases,
                 const float* inverse, float* y, float4* sums, const __grid_constant__ HopperTileArgs args, const uint4* tiles, const u32* lists, u32 n_tiles) {
    multiply_tiles<F, GROUPS, MI, NT, 1, true, false>(&weights, &x, &scales, &biases, nullptr, inverse, y, sums, args, {tiles, lists, n_tiles});
}
