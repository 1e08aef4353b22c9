// Few tokens, each with experts of its own, at the speed of memory.
//
// All tokens are columns of one product, as in matvec.cu, so that a weight row serves whoever wants its expert; what nobody wants is not stored. The experts
// that somebody wants are listed by every block; their strips of 16 rows follow one another, and a block takes the next one from a counter. A strip comes in
// one or more pieces of `piece` units, each a stage of the ring: by one tensor copy, or where rows start anywhere by a copy for each row (RAGGED). Teams of `span` warps take strips in turn, a warp every span-th unit of a piece, and add their
// sums in shared memory, where the operands made from x lie too: so many experts' rows follow that making them once for each block is little.

constexpr int MOST_ROUTED_STAGES = 24, MOST_PENDING = 128, MOST_ROUTED_SLOTS = 256;
constexpr u32 NO_STRIP = ~0u;

// The next strip and how many blocks are done: zero before and after a launch.
__device__ u32 routed_strips[2];

// What lies behind the stages in shared memory. Behind this, as the launch counts it: operands, sums of x, scales of x, sums of the warps, a word for each expert.
struct ExpertLayout {
    static constexpr int FULL = 0, EMPTY = 8 * MOST_PENDING, STRIPS = EMPTY + 8 * MOST_ROUTED_STAGES, IDS = STRIPS + 4 * MOST_PENDING, WANTED = IDS + 4 * MOST_ROUTED_SLOTS;
    static constexpr int ZEROS = WANTED + 4 * MOST_ROUTED_SLOTS, OPERANDS = ZEROS + 16; // what lanes read for columns of another group
};

DI void strip_copy(u32 to, const TensorMap* map, u32 x, u32 y, u32 z, u32 bar, u64 policy) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z),
                 "r"(bar), "l"(policy)
                 : "memory");
}
// x / d, where `inverse` is (2^32 - 1) / d.
DI u32 quotient(u32 x, u32 d, u32 inverse) {
    const u32 q = __umulhi(x, inverse);
    return q + (x - q * d >= d);
}
DI float not_a_number() { return __uint_as_float(0x7fffffffu); }

// The operands of all units of `m` rows of x in shared memory, made by sixteen warps: for each unit and two steps a word quadruple of each lane that has a column, at `operands`;
// sums over the groups for eight columns at `table`; what undoes the scaling of each unit's columns at `inverse`.
template <class F, int PARTS, class X> DI void make_operands(int m, u32 k, const X& x, u32 operands, u32 table, u32 inverse) {
    constexpr int HELD = 4, GROUPS = 256 / F::SUB;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, units = (k + 255) / 256, pairs = units * m;
    const u32 pitch = 64 * PARTS * m; // of two steps: lanes that have columns
    const u32 part = 65535u / m + 1;  // as pairs are few, a product is a division
    // Where this lane's four values of every 128 go, and what undoes the shift of their integers: place(i + 128) = place(i) + 128.
    u32 to[4];
    float lower[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int place = F::place(4 * lane + e), step = place >> 4;
        to[e] = operands + (step >> 1) * pitch + (place >> 2 & 3) * 16 + (step & 1) * 8 + (place & 3) * 2;
        lower[e] = __uint_as_float((u32)(127 - F::shift(step)) << 23);
    }
    const u32 sum_to = table + slot_of_group<F>(lane >> 2) * 32;
#pragma unroll 1
    for (int first = warp; first < pairs; first += HELD * WARPS) {
        float4 v[HELD][2];
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            const int pair = first + h * WARPS, unit = pair * part >> 16;
            const float* row = x(pair - unit * m);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const u32 i = unit * 256 + j * 128 + 4 * lane;
                v[h][j] = i < k ? *(const float4*)(row + i) : make_float4(0.f, 0.f, 0.f, 0.f);
            }
        }
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            const int pair = first + h * WARPS, unit = pair * part >> 16, token = pair - unit * m;
            if (pair >= pairs) break;
            float largest = 0.f, scale, back;
#pragma unroll
            for (int j = 0; j < 2; j++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[h][j].x), fabsf(v[h][j].y)), fmaxf(fabsf(v[h][j].z), fabsf(v[h][j].w))));
#pragma unroll
            for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
            power_of_two(largest, scale, back);
            // A value of bits<0> is QUANTUM.
            if (lane < PARTS) *(float*)(smem + inverse + unit * 32 + (PARTS * token + lane) * 4) = back * (1.f / F::QUANTUM);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float f[4] = {v[h][j].x * scale, v[h][j].y * scale, v[h][j].z * scale, v[h][j].w * scale};
#pragma unroll
                for (int part = 0; part < PARTS; part++) { // rounded, then what rounding left
                    float sum = 0.f;
                    const u32 column = PARTS * token + part;
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const float r = low_half(pack_halves(f[e], 0.f));
                        f[e] = fabsf(r) < 1e30f ? f[e] - r : 0.f;
                        sum += r;
                        *(u16*)(smem + to[e] + (unit * 8 + j * 4) * pitch + column * 64) = (u16)pack_halves(r * lower[e], 0.f);
                    }
                    if constexpr (F::OFFSET != 0 || F::MINIMUM) {
                        sum = sum_of_group<F, FOLDED<F, ONE_ROW>>(sum);
                        if (lane % (F::SUB / 4) == 0) *(float*)(smem + sum_to + (unit * GROUPS + j * (GROUPS / 2)) * 32 + column * 4) = sum;
                    }
                }
            }
        }
    }
}

// The matrices of a routed product after this one that has the same experts. Those listed first are read first; a block asks for its share of them once its own strips are on
// their way.
struct RoutedAhead {
    const u8* weights;
    RoutedRange range;
    // A warp.
    DI void fetch(const u32* wanted, u32 found) const {
        constexpr u32 PIECE = 4096;
        const u32 pieces = (range.bytes + PIECE - 1) / PIECE, all = min(found * pieces, range.most / PIECE);
        for (u32 p = (threadIdx.x & 31) * gridDim.x + blockIdx.x; p < all; p += 32 * gridDim.x) {
            const u32 place = p / pieces, within = (p - place * pieces) * PIECE;
            prefetch_bulk(weights + (wanted[place] & 0xffff) * range.matrix + within, min(PIECE, range.bytes - within));
        }
    }
};

// Whether two columns are wanted of a strip's product, or more.
struct Narrow { static constexpr bool NARROW = true; };
struct Wide { static constexpr bool NARROW = false; };

template <class F, int PARTS, bool TAIL, bool RAGGED>
DI void route(const u8* weights, const float* x, float* y, const HopperExpertArgs& a, const u32* ids, u64* fault, const TensorMap* map, const TensorMap* scales, const TensorMap* biases,
              const RoutedAhead& routed, const Ahead& ahead) {
    using L = ExpertLayout;
    constexpr int THREADS = WARPS * 32, GROUPS = 256 / F::SUB;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const u32 fixed = a.stages * a.stage_bytes, shared = shared_address(0), barriers = shared + fixed;
    const int units = (a.k + 255) / 256, columns = PARTS * a.m;
    const u32 operands = fixed + L::OPERANDS, table = operands + units * 512 * columns, inverse = table + (F::OFFSET || F::MINIMUM ? units * GROUPS * 32 : 0), areas = inverse + units * 32;
    u32* const known = (u32*)(smem + fixed + L::IDS);     // the expert of each slot of these tokens
    u32* const wanted = (u32*)(smem + fixed + L::WANTED); // experts, and who wants them from bit 16 on
    u32* const tokens_of = (u32*)(smem + areas + WARPS * 128 * a.m);
    volatile u32* const ring = (volatile u32*)(smem + fixed + L::STRIPS); // what the teams have in turn: places in `wanted` from bit 24 on, strips below
    // A team's pieces have barriers of their own, taken in turn: those of a stage could not tell one round of the ring from the next but one.
    const int teams = a.teams, pieces = a.pieces, depth = a.depth;
    auto full = [&](int team, int turn) { return barriers + 8 * (team * depth + turn) + L::FULL; };
    auto empty = [&](int slot) { return barriers + 8 * slot + L::EMPTY; };
    if (threadIdx.x == WARPS * 32) {
        if (!RAGGED) prefetch_map(map);
        if (F::AFFINE) prefetch_map(scales), prefetch_map(biases);
    }
    if (threadIdx.x < MOST_PENDING) { // a thread has barriers of its own: code that runs for the first time is slow
        static_assert(MOST_ROUTED_STAGES <= MOST_PENDING, "a thread for each");
        if (threadIdx.x < teams * depth) barrier_init(full(0, threadIdx.x), 1);
        if (threadIdx.x < a.stages) barrier_init(empty(threadIdx.x), RAGGED ? 32 * a.span : a.span);
        block_barriers_ready();
    }
    for (u32 i = threadIdx.x; i < a.n_experts; i += blockDim.x) tokens_of[i] = 0;
    if (F::OFFSET || F::MINIMUM)
        for (u32 i = threadIdx.x; i < units * GROUPS * 8; i += blockDim.x) *(u32*)(smem + table + 4 * i) = 0; // columns that no token has
    if (threadIdx.x < 4) *(u32*)(smem + fixed + L::ZEROS + 4 * threadIdx.x) = 0;
    __syncthreads();
    launch_dependents();
    wait_for_predecessor();
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        const u64 policy = evict_first_policy();
        // A copy takes a warp some 80 cycles: four warps issue those of rows.
        if (warp > WARPS && !RAGGED) return;
        const int issuer = RAGGED ? warp - WARPS : 0;
        u32 found = 0;
        if (issuer == 0) {
            const u32 slots = a.m * a.top_k;
#pragma unroll 1
            for (u32 base = 0; base < slots; base += 64) {
                u32 id[2];
#pragma unroll
                for (int h = 0; h < 2; h++) id[h] = base + 32 * h + lane < slots ? ids ? ids[a.first * a.top_k + base + 32 * h + lane] : 0 : ~0u;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 slot = base + 32 * h + lane;
                    if (slot < slots) known[slot] = id[h];
                    if (id[h] < a.n_experts) atomicOr(tokens_of + id[h], 1u << quotient(slot, a.top_k, a.inverse_top_k));
                }
            }
            __syncwarp();
#pragma unroll 1
            for (u32 base = 0; base < a.n_experts; base += 128) {
                u32 tokens[4];
#pragma unroll
                for (int h = 0; h < 4; h++) tokens[h] = base + 32 * h + lane < a.n_experts ? tokens_of[base + 32 * h + lane] : 0;
#pragma unroll
                for (int h = 0; h < 4; h++) {
                    const u32 some = __ballot_sync(~0u, tokens[h] != 0);
                    if (tokens[h]) wanted[found + __popc(some & ((1u << lane) - 1))] = base + 32 * h + lane | tokens[h] << 16;
                    found += __popc(some);
                }
            }
            __syncwarp();
            named_arrive<2, THREADS + 32>();
        }
        const u32 strips = a.strips, all = found * strips, grid = gridDim.x;
        // Strips are taken so many at once, the first few times without asking, then two answers ahead. Those wait behind the weights that are on their way.
        const u32 batch = max(1 + (all >= 32 * grid) + (all >= 48 * grid) + (all >= 64 * grid), all >= 16 * grid ? F::STRIPS : 1);
        constexpr u32 GIVEN = 4;
        auto request = [&](u32 number) {
            u32 first = (number * grid + blockIdx.x) * batch;
            // One lane's, which the compiler does not see: it adds those of a warp up first.
            if (number >= GIVEN && lane == 0) {
                asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(first) : "l"(routed_strips), "r"(batch) : "memory");
                first += GIVEN * grid * batch;
            }
            return first;
        };
        int issued = 0, slot = 0, phase = 1, team = 0, turn = 0;
        u32 even = 0, odd = 0, left = 0, taken = 0, place = 0, strip = 0;
        if (issuer == 0) even = request(0), odd = request(1);
#pragma unroll 1
        for (int i = 0;; i++) {
            u32 entry = NO_STRIP;
            if (issuer == 0) {
                if (left == 0) {
                    u32 first;
                    if (taken & 1) first = __shfl_sync(~0u, odd, 0), odd = request(taken + 2);
                    else first = __shfl_sync(~0u, even, 0), even = request(taken + 2);
                    taken++;
                    left = first < all ? min(batch, all - first) : 0;
                    place = quotient(first, strips, a.inverse_strips), strip = first - place * strips;
                }
                if (left > 0) entry = place << 24 | strip, left--;
                if (++strip == strips) strip = 0, place++;
                if (lane == 0) ring[i & (MOST_PENDING - 1)] = entry;
            }
            if (RAGGED) {
                named_sync<1, 128>();
                entry = ring[i & (MOST_PENDING - 1)];
            }
            if (entry == NO_STRIP) {
                if (issuer == 0 && lane < teams) { // every team learns of the end
                    const bool after = team + lane >= teams;
                    if (lane > 0) ring[i + lane & (MOST_PENDING - 1)] = NO_STRIP; // the first is there, and other issuers read it
                    barrier_arrive(full(team + lane - (after ? teams : 0), after ? turn + pieces == depth ? 0 : turn + pieces : turn));
                }
                break;
            }
            const u32 expert = wanted[entry >> 24] & 0xffff, row = (entry & 0xffffff) * 16;
            const u8* const start = weights + expert * a.w_matrix + min(row + (lane & 15), a.n - 1) * a.w_row;
#pragma unroll 1
            for (int unit = 0, pending = turn; unit < units; unit += a.piece, pending++) {
                const u32 inside = unit * F::UNIT, at = shared + slot * a.stage_bytes, bar = full(team, pending);
                if (issued++ >= a.stages) barrier_wait(empty(slot), phase);
                u32 total = 16 * a.pitch;
                if constexpr (RAGGED) {
                    const u32 length = min(a.piece * F::UNIT, (u32)a.w_row - inside), past = (u32)(u64)(start + inside) & 15, bytes = (past + length + 15) & ~15u;
                    total = lane < 16 ? bytes : 0;
#pragma unroll
                    for (int o = 8; o; o >>= 1) total += __shfl_xor_sync(~0u, total, o);
                    if (lane >> 2 == issuer) bulk_copy(at + lane * a.pitch, start + inside - past, bytes, bar, policy);
                }
                if (issuer == 0 && lane == 0) {
                    barrier_expect(bar, total + 32 * (F::AFFINE ? a.side_pitch : 0));
                    if constexpr (!RAGGED) strip_copy(at, map, inside / 8, row, expert, bar, policy);
                    if constexpr (F::AFFINE) {
                        const u32 side = at + 16 * a.pitch;
                        tile_copy(side, scales, (unit * F::SIDE & ~15) / 2, row, expert, bar);
                        tile_copy(side + 16 * a.side_pitch, biases, (unit * F::SIDE & ~15) / 2, row, expert, bar);
                    }
                }
                if (++slot == a.stages) slot = 0, phase ^= 1;
            }
            if (++team == teams) team = 0, turn = turn + pieces == depth ? 0 : turn + pieces;
        }
        if (issuer == 0) routed.fetch(wanted, found), ahead.fetch();
        if (issuer == 0 && lane == 0) {
            __threadfence(); // the last block leaves the counters as it found them
            if (atomicAdd(routed_strips + 1, 1) == grid - 1) atomicExch(routed_strips, 0), atomicExch(routed_strips + 1, 0);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        make_operands<F, PARTS>(a.m, a.k, [&](int token) { return x + (u64)(a.first + token) * a.x_row; }, operands, table, inverse);
        if constexpr (FOLDED<F, ONE_ROW>) {
            named_sync<3, THREADS>();
            for (int unit = warp; unit < units; unit += WARPS) fold_sums<F>(table + unit * GROUPS * 32);
        }
        named_sync<2, THREADS + 32>();
        for (u32 slot = blockIdx.x; slot < a.m * a.top_k; slot += gridDim.x) {
            if (known[slot] < a.n_experts) continue;
            const u32 all = a.first * a.top_k + slot;
            for (u32 j = threadIdx.x; j < a.n; j += THREADS) y[(u64)all * a.n + j] = not_a_number();
            if (threadIdx.x == 0) atomicMin(fault, (u64)all << 32 | known[slot]);
        }
        const int team = warp >> 31 - __clz(a.span), place = warp & a.span - 1; // a power of two
        const u32 row = g * a.pitch, side = 16 * a.pitch + g * a.side_pitch;
        const bool has_column = g < columns;
        int slot = team * pieces, next = 0, phase = 0, turn = 0;
#pragma unroll 1
        for (int i = team; team < teams; i += teams) {
            u32 entry, expert = 0, wants = 0, strip = 0, column[2] = {0, 0};
            bool narrow = true;
            float total[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
            for (int start = 0; start < units; start += a.piece) {
                while (slot >= a.stages) slot -= a.stages;
                barrier_wait(full(team, next), phase);
                if (++next == depth) next = 0, phase ^= 1;
                if (start == 0) {
                    entry = ring[i & (MOST_PENDING - 1)];
                    if (entry == NO_STRIP) break;
                    expert = wanted[entry >> 24] & 0xffff, wants = wanted[entry >> 24] >> 16, strip = entry & 0xffffff;
                    // Two columns for one token, or two: four groups find room beside one another.
                    narrow = !a.wide && __popc(wants) <= 3 - PARTS;
                    column[0] = PARTS * (__ffs(wants) - 1), column[1] = PARTS == 2 ? column[0] + 1 : 31 - __clz(wants);
                }
                const u32 at = slot * a.stage_bytes;
                const int stop = min((int)a.piece, units - start);
                // acc += this warp's rows of the unit at `inside` times its operands.
                auto multiply = [&](auto columns_of, int inside, float (&acc)[4]) {
                    constexpr bool NARROW = decltype(columns_of)::NARROW;
                    const int unit = start + inside;
                    const u32 sums_of_x = table + unit * GROUPS * 32;
                    u32 top = at + row + inside * F::UNIT, bottom = top + 8 * a.pitch;
                    // For two columns operands are loaded with each chunk.
                    const u32 from = operands + t * 16 + (g & 1 ? column[1] : column[0]) * 64 + unit * 8 * 64 * columns;
                    auto spread = [&](int c) {
                        LoadedChunk loaded;
                        auto& x = loaded.x;
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            auto address = [&](int s) { return has_columns(beside<F>(4 * c + s)) ? from + (2 * c + h) * 64 * columns : fixed + L::ZEROS; };
                            if constexpr (F::SUB == 16) {
#pragma unroll
                                for (int s = 2 * h; s < 2 * h + 2; s++) {
                                    const uint2 v = *(const uint2*)(smem + address(s) + s % 2 * 8);
                                    x[s][0] = v.x, x[s][1] = v.y;
                                }
                            } else {
                                const uint4 v = *(const uint4*)(smem + address(2 * h));
                                x[2 * h][0] = v.x, x[2 * h][1] = v.y, x[2 * h + 1][0] = v.z, x[2 * h + 1][1] = v.w;
                            }
                        }
                        return loaded;
                    };
                    u32 b[16][2];
                    if constexpr (!NARROW) {
#pragma unroll
                        for (int s = 0; s < 8; s++) {
                            const uint4 v = has_column ? *(const uint4*)(smem + operands + lane * 16 + (unit * 8 + s) * 64 * columns) : make_uint4(0, 0, 0, 0);
                            b[2 * s][0] = v.x, b[2 * s][1] = v.y, b[2 * s + 1][0] = v.z, b[2 * s + 1][1] = v.w;
                        }
                    }
                    auto run = [&](auto row0, auto row1) {
                        row0.scales = smem + at + side + inside * side_of<F>() + (start * side_of<F>() & 15), row1.scales = row0.scales + 8 * a.side_pitch;
                        row0.biases = row0.scales + 16 * a.side_pitch, row1.biases = row1.scales + 16 * a.side_pitch;
                        const int valid = (int)a.k - unit * 256;
                        if constexpr (NARROW) {
                            auto of_group = [&](int i) {
                                const u32 from = sums_of_x + 32 * t + 128 * i;
                                return make_float2(*(const float*)(smem + from + 4 * column[0]), *(const float*)(smem + from + 4 * column[1]));
                            };
                            auto fold = [&]() { return g < 2 ? *(const uint4*)(smem + sums_of_x + 64 * (g & 1 ? column[1] : column[0]) + 16 * t) : make_uint4(0, 0, 0, 0); };
                            multiply_spread<F, decltype(row0)::PAST, TAIL>(row0, row1, t, spread, of_group, fold, valid, acc);
                        } else multiply_unit<F, decltype(row0)::PAST, TAIL, FOLDED<F, ONE_ROW>, false>(row0, row1, t, b, sums_of_x, 0, valid, acc);
                    };
                    if constexpr (RAGGED) {
                        const u64 from = (u64)weights + expert * a.w_matrix + start * F::UNIT;
                        const u32 weight_row = strip * 16 + g;
                        top += (u32)(from + min(weight_row, a.n - 1) * a.w_row) & 15;
                        bottom += (u32)(from + min(weight_row + 8, a.n - 1) * a.w_row) & 15;
                        run(Row<-1>{smem + (top & ~3u), 8 * (top & 3)}, Row<-1>{smem + (bottom & ~3u), 8 * (bottom & 3)});
                    } else if constexpr (F::UNIT % 4 == 0) run(Row<0>{smem + top}, Row<0>{smem + bottom});
                    else if (inside & 1) run(Row<16>{smem + top - 2}, Row<16>{smem + bottom - 2});
                    else run(Row<0>{smem + top}, Row<0>{smem + bottom});
                };
#pragma unroll 1
                for (int inside = place; inside < stop; inside += a.span) {
                    float acc[4] = {0.f, 0.f, 0.f, 0.f};
                    if (narrow) multiply(Narrow{}, inside, acc);
                    else multiply(Wide{}, inside, acc);
                    const u32 scales_of_x = inverse + (start + inside) * 32, first = narrow ? column[0] : 2 * t, second = narrow ? column[1] : 2 * t + 1;
                    const float2 back = make_float2(*(const float*)(smem + scales_of_x + 4 * first), *(const float*)(smem + scales_of_x + 4 * second));
                    total[0] = fmaf(acc[0], back.x, total[0]), total[1] = fmaf(acc[1], back.y, total[1]);
                    total[2] = fmaf(acc[2], back.x, total[2]), total[3] = fmaf(acc[3], back.y, total[3]);
                }
                __syncwarp();
                if (RAGGED || lane == 0) barrier_arrive(empty(slot));
                slot++;
            }
            if (entry == NO_STRIP) break;
            slot += pieces * (teams - 1);
            // One buffer while the sums before are still read.
            const u32 sums = areas + (warp - place) * 128 * a.m + 64 * a.m * turn;
            float* const mine = (float*)(smem + sums + place * 128 * a.m);
            if (narrow) {
                if constexpr (PARTS == 2) {
                    const float sum = sum_of_quad(total, t);
                    if (t < 2) mine[8 * column[0] + 8 * t + g] = sum;
                } else { // a column and a row of the two for each lane of a quad
                    float sums[2];
#pragma unroll
                    for (int r = 0; r < 2; r++) sums[r] = (t & 1 ? total[2 * r + 1] : total[2 * r]) + __shfl_xor_sync(~0u, t & 1 ? total[2 * r] : total[2 * r + 1], 1);
                    const float sum = (t & 2 ? sums[1] : sums[0]) + __shfl_xor_sync(~0u, t & 2 ? sums[0] : sums[1], 2);
                    if (!(t & 1) || column[0] != column[1]) mine[16 * (t & 1 ? column[1] : column[0]) + 8 * (t >> 1) + g] = sum;
                }
            } else if constexpr (PARTS == 2) {
                if (wants >> t & 1) mine[t * 16 + g] = total[0] + total[1], mine[t * 16 + g + 8] = total[2] + total[3];
            } else {
                if (wants >> 2 * t & 1) mine[2 * t * 16 + g] = total[0], mine[2 * t * 16 + g + 8] = total[2];
                if (wants >> 2 * t & 2) mine[(2 * t + 1) * 16 + g] = total[1], mine[(2 * t + 1) * 16 + g + 8] = total[3];
            }
            if (a.span == 1) __syncwarp();
            else asm volatile("bar.sync %0, %1;" ::"r"(4 + team), "r"(32 * a.span) : "memory");
            for (u32 o = place * 32 + lane; o < 16 * a.m; o += 32 * a.span) { // o = 16 token + row
                const u32 token = o >> 4, feature = strip * 16 + (o & 15);
                if (!(wants >> token & 1) || feature >= a.n) continue;
                float sum = 0.f;
#pragma unroll 4
                for (int w = 0; w < a.span; w++) sum += *(const float*)(smem + sums + w * 128 * a.m + 4 * o);
#pragma unroll 4
                for (u32 j = token * a.top_k; j < (token + 1) * a.top_k; j++)
                    if (known[j] == expert) y[((u64)a.first * a.top_k + j) * a.n + feature] = sum;
            }
            turn ^= 1;
        }
    }
}

// y [slots, n]: each slot's row of x times its expert's matrix; without ids all have the first. PARTS is 2 where rows of x are as good as f32, for up to four tokens,
// and 1 where they are halves. An id that is no expert gives NaN. `map` has boxes of 16 rows x pitch bytes of a matrix; those
// of an affine format's scales and biases are side_pitch bytes.
template <class F, int PARTS, bool TAIL, bool RAGGED>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_mv_id(const u8* weights, const float* x, float* y, const __grid_constant__ HopperExpertArgs args, const u32* ids, u64* fault, const __grid_constant__ TensorMap map,
                 const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap biases, const __grid_constant__ RoutedAhead routed,
                 const __grid_constant__ Ahead ahead) {
    route<typename Started<F, RAGGED>::Format, PARTS, TAIL, RAGGED>(weights, x, y, args, ids, fault, &map, &scales, &biases, routed, ahead);
}
