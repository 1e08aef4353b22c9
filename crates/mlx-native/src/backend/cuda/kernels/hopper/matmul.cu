// Many rows of x times a quantized matrix on the tensor cores.
//
// A block computes 64 MI GROUPS weight rows x NT rows of x: each of GROUPS warpgroups takes 64 MI weight rows, dequantized into registers as the left
// operand, chunk by chunk (64 values of k) one ahead of the tensor cores; the prepared x (halves, in the order of F::place) comes through
// shared memory, and in clusters of two each block fetches half of it for both. Blocks are persistent. Work is counted in units of 256
// values of k: first every cluster gets an equal run of units over the tiles that would not fill a whole wave, then whole tiles. Where a
// run ends inside a tile, the clusters with the later units store their sums and raise a flag, and the one with the first units adds them in
// order: the same bits every time. Where sums leave by copies and whole tiles follow, nobody waits for such parts: all are stored, and the warps
// that send sums off add them up under the products of the whole tiles, each cluster a share of those tiles that it has a part of.

// So many steps of a chunk.
template <int N> struct Steps { static constexpr int COUNT = N; };
template <class F, int GROUPS, int MI, int NT, int CLUSTER, bool ROUTED, TileRows STARTS>
DI void multiply_tiles(const TensorMap* weights, const TensorMap* x, const TensorMap* scales, const TensorMap* biases, const TensorMap* output, const float* inverse, float* y, float4* sums,
                       const HopperTileArgs& a, const Routing& routing) {
    constexpr bool RAGGED = STARTS != ON_16, STAGED = !ROUTED && NT == 256, EARLY = ROUTED && NT <= 64;
    // Sums of ragged rows lie eight features apart in a warp: with the rows of x in another order they fall into the same banks two at a time as they leave, not four.
    constexpr bool TURNED = STAGED && RAGGED;
    // A warpgroup has eight of sixteen sorts of rows: two share 128 weight rows then, eight of every sixteen for each, and the pieces of what leaves.
    constexpr int SORTS = sorts_of(STARTS);
    constexpr bool WOVEN = SORTS == 16;
    using L = MatMulLayout<F, GROUPS, MI, NT, STAGED, RAGGED>;
    constexpr int OF_SORT = L::ROWS / SORTS;
    static_assert(!RAGGED || (MI == 1 && OF_SORT % 8 == 0), "rows of a sort");
    const u32 shared = shared_address(0);
    const u32 x_full = shared + L::X_FULL, x_empty = shared + L::X_EMPTY, w_full = shared + L::W_FULL, w_empty = shared + L::W_EMPTY;
    const u32 store_full = shared + L::STORE_FULL, store_empty = shared + L::STORE_EMPTY;
    u32 rank = 0;
    if (CLUSTER > 1) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::X_STAGES; i++) barrier_init(x_full + 8 * i, 1), barrier_init(x_empty + 8 * i, 4 * GROUPS * CLUSTER);
        for (int i = 0; i < L::W_SLOTS; i++) barrier_init(w_full + 8 * i, 1), barrier_init(w_empty + 8 * i, 4 * GROUPS);
        for (int i = 0; i < GROUPS * L::PIECES; i++) barrier_init(store_full + 8 * i, WOVEN ? 4 * GROUPS : 4), barrier_init(store_empty + 8 * i, 1);
        for (int i = 0; i < GROUPS; i++) barrier_init(shared + L::PARTS_FULL + 8 * i, STAGED ? 1 : 4);
        barriers_ready();
    }
    if (threadIdx.x == 32) prefetch_map(weights), prefetch_map(x);
    // Weights are a block's own: their first copies need not wait for the cluster.
    __syncthreads();
    if (CLUSTER > 1) cluster_arrive();
    launch_dependents();
    int token_tiles = (a.m + NT - 1) / NT;
    if (ROUTED) {
        wait_for_predecessor();
        token_tiles = 0;
        for (u32 base = 0; base < routing.n_tiles; base += blockDim.x) token_tiles += __syncthreads_count(base + threadIdx.x < routing.n_tiles && routing.tiles[base + threadIdx.x].z > 0);
        // The compiler then knows that all lanes have the same, and keeps what depends on it where the tensor cores' instructions want it.
        token_tiles = __shfl_sync(~0u, token_tiles, 0);
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
    const Schedule work(tiles, a.units, clusters, blockIdx.x / CLUSTER, STAGED && a.staged);
    // Where a part's sums lie in the held memory, and its flag: a block has two parts at most.
    auto part_of = [&](int block, int group, bool second) { return (second * gridDim.x + block) * GROUPS + group; };

    if (threadIdx.x < 128) {
        // What these leave is what the others take: 168 x 384, 128 x 512 or 96 x 640 registers are all that a block has.
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 40 : 32));
        if (CLUSTER > 1 && threadIdx.x >> 5 != 1) cluster_wait();
        if (threadIdx.x == 0) {
            int slot = 0, phase = 1, begun = 0;
            wait_for_predecessor();
            auto stage = [&](int bytes) {
                // All blocks begin at once: what their first products need comes before everything else.
                if (EARLY && begun < 3 && begun++ == 2) barrier_wait(x_full, 0);
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
                const bool incomplete = !work.is_part(v, unit) && end - v != (int)a.units;
#pragma unroll 1
                for (; v < end; v++, unit++)
#pragma unroll 1
                    for (int c = L::TAILED && a.tail && unit == 0 ? -1 : 0; c < 4; c += L::CHUNKS) {
                        const u32 to = stage(L::X_BYTES) + rank * (L::CHUNK_BYTES / CLUSTER);
                        const int from = L::TAILED && c < 0 ? a.units * 256 : unit * 256 + c * 64;
#pragma unroll
                        for (int i = 0; i < L::CHUNKS; i++) {
                            if (CLUSTER > 1) tile_multicast(to + i * L::CHUNK_BYTES, x, from + i * 64, token, x_full + 8 * slot, (1 << CLUSTER) - 1);
                            else tile_copy(to + i * L::CHUNK_BYTES, x, from + i * 64, token, x_full + 8 * slot);
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
                        u32* flag = held_flags + part_of(block, group, false);
                        wait_for_flag(flag);
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
            int slot = 0, phase = L::TAILED ? -1 : 1, side = -1, tile, unit = 0, row = 0, matrix = 0;
            if (a.moved) wait_for_predecessor();
            // With tails each slot has a bit of `phase`, as it is not used in turn.
            auto wait_for_room = [&](int of) {
                barrier_wait(w_empty + 8 * of, L::TAILED ? phase >> of & 1 : phase);
                if (L::TAILED) phase ^= 1 << of;
            };
            auto copy = [&](u32 to, const TensorMap* map, int at, u32 bar) {
                if (ROUTED) tile_copy(to, map, at, row, matrix, bar);
                else tile_copy(to, map, at, row, bar);
            };
#pragma unroll 1
            for (int v = 0; v < work.total; v++, unit++) {
                const bool jumped = v == 0 || work.jumps(v, unit);
                if (jumped) {
                    work.at(v, tile, unit);
                    const Tile t = tile_of(tile);
                    row = (t.row_tile * CLUSTER + rank) * L::ROWS, matrix = t.matrix;
                }
                const bool more_sides = F::AFFINE && (jumped || unit % L::SIDE_UNITS == 0);
#pragma unroll 1
                for (int slice = 0; slice < L::SLICES; slice++) {
                    const u32 to = shared + L::W + slot * L::W_BYTES;
                    const u32 at = (unit * L::SLICES + slice) * L::SLICE;
                    if (EARLY && v * L::SLICES + slice == 1) barrier_wait(w_full, 0);
                    wait_for_room(slot);
                    const bool sides = more_sides && slice == 0;
                    barrier_expect(w_full + 8 * slot, L::LINES * L::ROWS * L::PITCH + (sides ? 2 * L::SIDE_BYTES : 0));
                    if constexpr (RAGGED) {
                        // SORTS rows are a multiple of 16 bytes, and one row of the map: a copy takes all rows of a sort that a tile has.
#pragma unroll 1
                        for (int i = 0; i < SORTS; i++) tile_copy(to + OF_SORT * i * L::PITCH, weights, (i * a.w_row + at & ~15) / 2, row / SORTS, w_full + 8 * slot);
                    } else {
#pragma unroll
                        for (int i = 0; i < L::LINES; i++) copy(to + i * L::ROWS * L::PITCH, weights, (at & ~15) / 2 + 64 * i, w_full + 8 * slot);
                    }
                    if constexpr (F::AFFINE) {
                        if (sides) {
                            if (++side == L::W_STAGES) side = 0;
                            const u32 to = shared + L::W + side * L::W_BYTES + L::SIDE, from = unit * F::SIDE & -L::SIDE_PITCH;
                            copy(to, scales, from / 2, w_full + 8 * slot);
                            copy(to + L::SIDE_BYTES, biases, from / 2, w_full + 8 * slot);
                        }
                    }
                    if (++slot == L::W_STAGES) slot = 0, phase ^= L::TAILED ? 0 : 1;
                }
                if constexpr (L::TAILED) {
                    if (a.tail && unit == 0) {
                        // A lent stage is the one after the first unit, whose own weights come later then.
                        const int tail = L::LENT ? slot : L::W_STAGES;
                        wait_for_room(tail);
                        barrier_expect(w_full + 8 * tail, L::TAIL_BYTES);
#pragma unroll 1
                        for (int i = 0; i < SORTS; i++)
                            tile_copy(shared + L::W + tail * L::W_BYTES + OF_SORT * i * L::TAIL_PITCH, scales, (i * a.w_row + a.units * F::UNIT & ~15) / 2, row / SORTS, w_full + 8 * tail);
                    }
                }
            }
        } else if (STAGED && threadIdx.x >= 64) {
            if constexpr (STAGED) send_sums<L, MI, NT, CLUSTER>(work, output, sums, part_of, tile_of, a.staged);
        } else if (!STAGED && threadIdx.x == 64 && work.begins_with_part()) {
            // Raises the flags of the block's part, so that those who multiply need not wait for their stores.
#pragma unroll 1
            for (int group = 0; group < GROUPS; group++) {
                barrier_wait(shared + L::PARTS_FULL + 8 * group, 0);
                memory_fence();
                raise_flag(held_flags + part_of(blockIdx.x, group, false));
            }
        }
        __syncwarp();
        if (CLUSTER > 1 && threadIdx.x >> 5 == 1) cluster_wait();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 232 : GROUPS == 3 ? 160 : 112));
        const int group = (threadIdx.x >> 7) - 1, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, t = lane & 3;
        // This lane's two weight rows of every 64 are neighbours, so that their sums are stored together: 2 g + (0 or 1) for the operand's row g and 2 g + (1 or 0) for its
        // row g + 8. Swapping them in the upper half makes eight lanes' rows fall into different banks. Ragged rows lie SORTS apart, and a warp has two of the sorts.
        const int swapped = RAGGED ? 0 : g >> 2, first_sort = WOVEN ? 8 * (group & 1) + 2 * warp : 2 * warp;
        const int within_64 = RAGGED ? (SORTS * g & 63) + first_sort : warp * 16 + 2 * g, mine = WOVEN ? (group >> 1) * 128 + 16 * g + first_sort : group * 64 * MI + within_64;
        // Where they lie in a stage.
        const int top_row = RAGGED ? first_sort * OF_SORT + 8 * (WOVEN ? group >> 1 : group) + g : group * 64 * MI + warp * 16 + 2 * g + swapped, other = RAGGED ? OF_SORT : swapped ? -1 : 1;
        // The rows of x, of every eight, whose sums a lane has.
        auto row_of_eight = [&](int e) { return TURNED ? t + 4 * e : 2 * t + e; };
        float acc[MI][NT / 2];
        u32 left[2][4][4];
        int xs = 0, x_phase = 0, ws = 0, w_phase = 0, side = 0, used = -1;
        int tile_ahead, unit_ahead; // of the unit that is being dequantized
        work.at(0, tile_ahead, unit_ahead);
        // The references of this lane's rows, for the sums and for the unit that is being dequantized, where a format has some.
        int references[MI][2] = {}, references_ahead[MI][2] = {};
        bool rescale = false;
        // The scales of this lane's own groups of that unit, relative to them: lane c of four has those of chunk c.
        u32 ranged[MI][2] = {};
        // What its chunks have in common; where four warpgroups share the registers they cannot keep it.
        typename F::Head heads[MI][2];
        // Where a row of the unit ahead starts, or would start if the stage had all of it, when it has the slice with chunk c. Units of whole 16 bytes start at the same place in all stages.
        const u32 sorts[2] = {RAGGED ? first_sort * a.w_row : 0, RAGGED ? (first_sort + 1) * a.w_row : 0};
        auto row_of = [&](int mi, int which, int c) {
            const u32 before = c * L::SLICES / 4 * L::SLICE, row = top_row + 64 * mi + which * other, within = (F::UNIT % 16 ? (u32)unit_ahead * F::UNIT + before : before) + sorts[which];
            const u32 start = L::W + ws * L::W_BYTES + (row * L::PITCH + (L::SWIZZLED ? row % 8 * 16 : L::PAST ? within & 15 : 0));
            return L::SWIZZLED ? start : start - before;
        };
        // Where a ragged row ends within the unit ahead, what follows counts as zero: its x is, and its scales are made so. A warp's rows are read by no other.
        auto cut_tail = [&](int slice) {
            const int valid = (int)a.k - 256 * unit_ahead;
            if (!RAGGED || F::UNIT_SCALE || valid >= 256) return;
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int which = 0; which < 2; which++) clear_scales<F, L::SLICES>(smem + row_of(i, which, slice * 4 / L::SLICES), t, slice, valid);
            // The stage will be filled again by copies.
            proxy_fence();
            __syncwarp();
        };
        // Looks at the exponents of the unit ahead. A new run of units starts with its own references; within one they grow where they must, and the
        // sums are scaled down before the products that need it.
        auto look_ahead = [&](bool new_run) {
            if constexpr (F::RANGED) {
                int own[MI][2][2];
                bool matters = new_run;
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int which = 0; which < 2; which++) {
                        int (&e)[2] = own[i][which];
                        F::own_exponents(smem + row_of(i, which, 0) + F::UNIT / 4 * t, e);
                        matters |= max(e[0], e[1]) > references_ahead[i][which] + F::HEADROOM + F::MOST;
                    }
                // Mostly no lane sees an exponent that matters.
                if (__any_sync(~0u, matters)) {
#pragma unroll
                    for (int i = 0; i < MI; i++)
#pragma unroll
                        for (int which = 0; which < 2; which++) {
                            const int largest = F::largest_exponent(own[i][which]);
                            if (new_run || largest > references_ahead[i][which] + F::HEADROOM + F::MOST) references_ahead[i][which] = largest, rescale = !new_run;
                        }
                    rescale = __any_sync(~0u, rescale);
                }
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int which = 0; which < 2; which++) ranged[i][which] = F::ranged_scales(own[i][which], references_ahead[i][which]);
            }
        };
        auto dequantize_from = [&](int buffer, int c, int mi, u32 first, u32 second, const u32 (&own)[2]) {
            u32 scales[2] = {};
            if constexpr (F::RANGED) scales[0] = __shfl_sync(~0u, own[0], c, 4), scales[1] = __shfl_sync(~0u, own[1], c, 4);
            auto run = [&](auto top, auto bottom) {
                if constexpr (F::AFFINE) {
                    top.scales = smem + L::W + side * L::W_BYTES + L::SIDE + (top_row + 64 * mi) * L::SIDE_PITCH + ((u32)unit_ahead * F::SIDE & L::SIDE_PITCH - 1);
                    bottom.scales = top.scales + other * L::SIDE_PITCH;
                    top.biases = top.scales + L::SIDE_BYTES, bottom.biases = bottom.scales + L::SIDE_BYTES;
                }
                if (c == 0 || GROUPS == 4) heads[mi][0] = F::head(top), heads[mi][1] = F::head(bottom);
                chunk_weights<F>(top, heads[mi][0], c, t, left[buffer], 0, scales[0]);
                chunk_weights<F>(bottom, heads[mi][1], c, t, left[buffer], 1, scales[1]);
            };
            if constexpr (STARTS == ON_WORDS) run(Row<0>{smem + first}, Row<0>{smem + second});
            else if constexpr (STARTS == BY_TURNS) run(Row<0>{smem + first}, Row<16>{smem + second - 2}); // A lane's upper row is an even one of eight.
            else if constexpr (STARTS == ON_BYTES) run(Row<-1>{smem + (first & ~3u), 8 * (first & 3)}, Row<-1>{smem + (second & ~3u), 8 * (second & 3)});
            else if constexpr (STARTS == ON_EVEN) {
                auto with = [&](auto top) {
                    if (second & 2) run(top, Row<16>{smem + second - 2});
                    else run(top, Row<0>{smem + second});
                };
                if (F::UNIT % 4 && first & 2) with(Row<16>{smem + first - 2});
                else with(Row<0>{smem + first});
            } else if constexpr (L::SWIZZLED) {
                using Swizzled = SwizzledRow<L::LINES == 1 ? 0 : L::ROWS * 128>;
                run(Swizzled{first}, Swizzled{second});
            } else {
                auto pair = [&](auto top) { run(top, top.moved(other * L::PITCH)); };
                // Pitches are multiples of 16: all rows of a unit start on a word, or two bytes past one.
                if (F::UNIT % 4 && first & 2) pair(Row<16>{smem + first - 2});
                else pair(Row<0>{smem + first});
            }
        };
        auto dequantize = [&](int buffer, int c, int mi) { dequantize_from(buffer, c, mi, row_of(mi, 0, c), row_of(mi, 1, c), ranged[mi]); };
        auto release = [&](int stage) {
            if (lane == 0) {
                if (CLUSTER > 1) {
                    for (int r = 0; r < CLUSTER; r++) barrier_arrive_in_cluster(x_empty + 8 * stage, r);
                } else barrier_arrive(x_empty + 8 * stage);
            }
        };
        // Pieces of sums leave through a ring of buffers: a warpgroup fills them, a thread of the first one sends them off.
        int piece = 0, piece_phase = 1;
        auto put = [&](auto fill) {
            if constexpr (STAGED) {
                auto slot_of = [&](int of) { return of * L::PIECES + piece; };
                // Woven warpgroups fill each other's pieces too.
#pragma unroll
                for (int i = 0; i < (WOVEN ? GROUPS : 1); i++) barrier_wait(store_empty + 8 * slot_of(WOVEN ? i : group), piece_phase);
                fill([&](int of) { return L::STORE + slot_of(of) * L::PIECE_BYTES; });
                proxy_fence();
                __syncwarp();
#pragma unroll
                for (int i = 0; i < (WOVEN ? GROUPS : 1); i++)
                    if (lane == 0) barrier_arrive(store_full + 8 * slot_of(WOVEN ? i : group));
                if (++piece == L::PIECES) piece = 0, piece_phase ^= 1;
            }
        };
        if (work.total > 0) {
            barrier_wait(w_full, 0);
            cut_tail(0);
            look_ahead(true);
            dequantize(0, 0, 0);
        }
        if (CLUSTER > 1) cluster_wait();
        wait_for_predecessor();
        int v = 0;
        while (v < work.total) {
            int tile, unit;
            work.at(v, tile, unit);
            const int end = work.run_end(v, unit);
            const bool part = work.is_part(v, unit), incomplete = !part && end - v != (int)a.units;
            // What undoes the scaling of rows 64 q + 2 lane and the one after, and where they go, fetched once: loads between the stores would wait for one another.
            constexpr int SHARE = NT < 64 ? 1 : NT / 64;
            Tile here;
            float back[SHARE][2];
            u32 slots[SHARE][2];
            auto look_up = [&]() {
                here = tile_of(tile);
                const int columns = min(TURNED ? here.tokens + 7 & ~7 : here.tokens, NT);
#pragma unroll
                for (int q = 0; q < SHARE; q++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int within = 64 * q + 2 * lane + e;
                        back[q][e] = within < columns ? inverse[here.token + within] : 0.f;
                        slots[q][e] = ROUTED && within < columns ? routing.lists[here.token + within] : 0;
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
            if constexpr (L::TAILED) {
                // The last values of a tile's rows are multiplied first, by the operand that no chunk has yet: their product runs beside what follows.
                if (a.tail && unit == 0) {
                    const bool half = a.k - 256 * a.units <= 32;
                    const int slot = L::tail_slot(ws);
                    barrier_wait(w_full + 8 * slot, w_phase >> slot & 1);
                    w_phase ^= 1 << slot;
                    u32 rows[2], scales[2] = {};
#pragma unroll
                    for (int i = 0; i < 2; i++) rows[i] = L::W + slot * L::W_BYTES + (top_row + i * other) * L::TAIL_PITCH + (a.units * F::UNIT + sorts[i] & 15);
                    if constexpr (F::RANGED) {
                        int own[2][2];
                        bool matters = false;
#pragma unroll
                        for (int which = 0; which < 2; which++) {
                            F::own_exponents(smem + rows[which], own[which]);
                            if (half) own[which][1] = 0;
                            matters |= max(own[which][0], own[which][1]) > references[0][which] + F::HEADROOM + F::MOST;
                        }
                        // Then the run begins with their references, and the first chunk is dequantized once more.
                        if (__any_sync(~0u, matters)) {
#pragma unroll
                            for (int which = 0; which < 2; which++) {
                                const int largest = max(own[which][0], own[which][1]);
                                if (largest > references[0][which] + F::HEADROOM + F::MOST) references[0][which] = references_ahead[0][which] = largest;
                            }
                            look_ahead(false);
                            dequantize(0, 0, 0);
                        }
#pragma unroll
                        for (int which = 0; which < 2; which++) scales[which] = F::ranged_scales(own[which], references[0][which]);
                    }
                    dequantize_from(1, 0, 0, rows[0], rows[1], scales);
                    __syncwarp();
                    if (lane == 0) barrier_arrive(w_empty + 8 * slot);
                    barrier_wait(x_full + 8 * xs, x_phase);
                    auto multiply = [&](auto steps) {
                        warpgroup_fence();
#pragma unroll
                        for (int s = 0; s < decltype(steps)::COUNT; s++) warpgroup_mma<NT>(acc[0], left[1][s], operand_of(shared + L::X + xs * L::X_BYTES) + 2 * s);
                        warpgroup_commit();
                    };
                    // Behind 32 values lies what belongs to others, or nothing.
                    if (half) multiply(Steps<2>{});
                    else multiply(Steps<4>{});
                    used = xs;
                    if (++xs == L::X_STAGES) xs = 0, x_phase ^= 1;
                }
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
                        if (next_mi == 0 && next_c * L::SLICES % 4 == 0) {
                            __syncwarp();
                            if (lane == 0) barrier_arrive(w_empty + 8 * ws);
                            if (L::TAILED) w_phase ^= 1 << ws;
                            if (++ws == L::W_STAGES) ws = 0, w_phase ^= L::TAILED ? 0 : 1;
                            if (next_c < 4 || v + 1 < work.total) barrier_wait(w_full + 8 * ws, L::TAILED ? w_phase >> ws & 1 : w_phase);
                            if (next_c < 4) cut_tail(next_c * L::SLICES / 4);
                        }
                        if (next_c == 4) {
                            if (RAGGED || L::PAST || F::AFFINE) {
                                unit_ahead++;
                                const bool jumps = work.jumps(v + 1, unit_ahead);
                                if (jumps) work.at(v + 1, tile_ahead, unit_ahead);
                                if (F::AFFINE && (jumps || unit_ahead % L::SIDE_UNITS == 0) && ++side == L::W_STAGES) side = 0;
                            }
                            if (v + 1 < work.total) cut_tail(0);
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
            if (part && !work.aside) { // the block that has the tile's first units adds these
                float4* held = sums + (u64)part_of(blockIdx.x, group, false) * QUADS * 128;
                auto quad = [&](int q) {
                    const float* s = &acc[q / (NT / 8)][4 * (q % (NT / 8))];
                    return make_float4(s[0], s[1], s[2], s[3]);
                };
                if constexpr (STAGED) {
                    constexpr int EACH = L::PIECE / 8;
#pragma unroll
                    for (int q = 0; q < QUADS; q += EACH)
                        put([&](auto piece_of) {
                            const u32 at = piece_of(group);
#pragma unroll
                            for (int e = 0; e < EACH; e++) *(float4*)(smem + at + e * 2048 + (threadIdx.x & 127) * 16) = quad(q + e);
                        });
                } else {
#pragma unroll
                    for (int q = 0; q < QUADS; q++) __stcg(held + q * 128 + (threadIdx.x & 127), quad(q));
                    // Another warp waits until they are in memory.
                    __syncwarp();
                    if (lane == 0) barrier_arrive(shared + L::PARTS_FULL + 8 * group);
                }
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
                        put([&](auto piece_of) {
                            const u32 at = piece_of(WOVEN ? g >> 2 : group);
                            // Rows of 128 bytes, 32 features of a row of x each; 16 bytes are where the copy's swizzle expects them.
                            const u32 chunk = within_64 >> 2 & 7, in_chunk = (within_64 & 3) * 4, half = within_64 >> 5;
#pragma unroll
                            for (int q = 0; q < L::PIECE / 8; q++)
#pragma unroll
                                for (int e = 0; e < 2; e++) {
                                    const int j = p * (L::PIECE / 8) + q, row = 8 * q + row_of_eight(e);
                                    const float factor = __shfl_sync(~0u, back[j >> 3][e], (4 * j + t) & 31);
                                    const float first = acc[i][4 * j + e] * factor, second = acc[i][4 * j + 2 + e] * factor;
                                    *(float2*)(smem + at + (half * L::PIECE + row) * 128 + (chunk ^ row & 7) * 16 + in_chunk) = swapped ? make_float2(second, first) : make_float2(first, second);
                                }
                        });
                continue;
            }
            const bool paired = (a.n & 1) == 0 && ((u64)y & 7) == 0;
#pragma unroll
            for (int j = 0; j < NT / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int within = 8 * j + row_of_eight(e), from = (4 * j + t) & 31;
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
    }
    if (CLUSTER > 1) cluster_arrive(), cluster_wait(); // no block leaves while the other may still write into its memory
}

// y [m, n] = x times the weight's rows. `sums` has room for ROWS x NT of each block; inverse[i] undoes the scaling of row i of x; `output` is y where sums leave staged.
template <class F, int GROUPS, int MI, int NT, int CLUSTER, TileRows STARTS>
__global__ void __launch_bounds__(128 + 128 * GROUPS, 1)
    hopper_mm(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases,
              const __grid_constant__ TensorMap output, const float* inverse, float* y, float4* sums, const __grid_constant__ HopperTileArgs args) {
    multiply_tiles<F, GROUPS, MI, NT, CLUSTER, false, STARTS>(&weights, &x, &scales, &biases, &output, inverse, y, sums, args, {});
}
// y [slots, n]: each expert's slots times its matrix; x has a row for each place in `lists`.
template <class F, int GROUPS, int MI, int NT>
__global__ void __launch_bounds__(128 + 128 * GROUPS, 1)
    hopper_mm_id(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases,
                 const float* inverse, float* y, float4* sums, const __grid_constant__ HopperTileArgs args, const uint4* tiles, const u32* lists, u32 n_tiles) {
    multiply_tiles<F, GROUPS, MI, NT, 1, true, ON_16>(&weights, &x, &scales, &biases, nullptr, inverse, y, sums, args, {tiles, lists, n_tiles});
}
