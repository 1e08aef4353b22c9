// The products of a layer from attention's output to the next layer's queries, keys and values, of one row of x, in one launch: the output product and its
// residual; norm, gate, up and activation; the down product and its residual; norm and up to three products.
//
// A block on every multiprocessor, all at once. What a product sums is the next one's input, so that the blocks wait for each other between them, by counters in
// memory that every finished group of rows raises. Weights depend on nothing: the warp that copies runs ahead of the others through all products, and the
// ring of slots is full of the next product's weights when its input is there. All products of a format run through the same instructions, as those that run for the first time are slow.
//
// A stage is 16 rows x `span` units in PIECES slots of their own, each of which 16 / PIECES warps read, a unit a warp, whose operands it holds. Rows that are
// longer are cut into slices, each for every so many-th block; what the slices sum is added up by those who read it. Groups of rows are dealt to blocks in
// turn; a product begins with the block after the one with which the one before ended. Two more warps add up the sums of the others, and one norms.

constexpr int PHASES = 4, MOST_SLOTS = 24, LAYER_SUMS = 3;
// Slots that are on their way at once: more would delay everything else that blocks ask of memory, and what they tell each other.
constexpr int IN_FLIGHT = 3;
// How often a block looks for the others before it gives up: seconds, where a product takes microseconds.
constexpr u32 MOST_LOOKS = 1 << 24;
// Counters: groups of rows that are done, with the shares of the normed row, for each product but the last; blocks that have read the last one's input; warps that are done.
// Zero before and after a launch, a line each.
enum Counts { LOADED = PHASES - 1, ENDED, COUNTS };
__device__ u32 layer_counts[COUNTS][32];

// What becomes of the sums of a product: outputs of up to three matrices; output and residual + output; output, and the activation of the first
// times it; or a slice's share, kept apart.
enum Becomes { OUTPUTS, RESIDUAL, GATED, SLICES };
struct LayerProduct {
    // The input is x + the sum of what `slices` slices of the product before have; that sum goes to `joined`, and x + it to `sums`.
    const float *x, *parts;
    float* joined;
    const float* norm; // null for none
    float *normed, *outputs[3];
    const float* residual;
    float* sums;
    HopperProductArgs a;
};
struct LayerProducts { LayerProduct at[PHASES]; };

// Raises a counter after this thread's writes, and those of its warp before a __syncwarp.
DI void count_up(u32* counter, u32 by = 1) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(by) : "memory"); }
// Waits until a counter has come so far.
DI void wait_for_count(const u32* counter, u32 target) {
    for (u32 looks = 0;; looks++) {
        u32 seen;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (seen >= target) break;
        if (looks == MOST_LOOKS) asm volatile("trap;");
    }
}

// The first of the named barriers at which all warps and the one that adds up announce sums.
constexpr int FILLED = 3;
// Bytes of a unit's sums of x: for both columns of every group, or the operand of its minimums.
template <class F> DI constexpr int layer_table() { return FOLDED<F, ONE_ROW> ? 512 : F::OFFSET || F::MINIMUM ? 256 / F::SUB * 8 : 0; }
// A block's shared memory: slots, then this.
struct LayerLayout {
    static constexpr int FULL = 0, EMPTY = 8 * MOST_SLOTS, DRAINED = 2 * EMPTY, SHARES = DRAINED + 32;
    static constexpr int SUMS = SHARES + 96, STAGING = SUMS + LAYER_SUMS * WARPS * 128, TABLES = STAGING + WARPS * 1024;
};
// The ring of slots, a multiple of PIECES, and the buffers for the sums of warps.
struct LayerRing {
    u32 slot_bytes, slots, fixed, shared;
    DI u32 barrier(int at, int index) const { return shared + fixed + at + 8 * index; }
    DI u32 full(int slot) const { return barrier(LayerLayout::FULL, slot); }
    DI u32 empty(int slot) const { return barrier(LayerLayout::EMPTY, slot); }
    DI u32 drained(int buffer) const { return barrier(LayerLayout::DRAINED, buffer); }
    DI float* sums(int buffer) const { return (float*)(smem + fixed + LayerLayout::SUMS) + buffer * WARPS * 32; }
    DI float* shares() const { return (float*)(smem + fixed + LayerLayout::SHARES); }
};
// Where a warp is in the ring and among the buffers.
struct LayerPlace {
    int slot, round, buffer, again, issued = 0;
    DI void next_slots(int count, int slots) {
        slot += count;
        if (slot >= slots) slot -= slots, round ^= 1;
    }
    DI void next_buffer() {
        if (++buffer == LAYER_SUMS) buffer = 0, again ^= 1;
    }
};
// The groups of rows of a block: the first and every `step`-th after it.
struct LayerGroups {
    int first, step, all;
    u32 slice;
    DI LayerGroups(const HopperProductArgs& a) {
        const u32 blocks = gridDim.x / a.slices, block = blockIdx.x / a.slices;
        slice = blockIdx.x - block * a.slices;
        step = blocks, all = a.groups;
        first = block + a.turned;
        if (first >= step) first -= step;
        if (block >= blocks) first = all; // one that is left over
    }
    DI int count() const { return first < all ? (all - first + step - 1) / step : 0; }
};
// Rows of a product's matrix.
DI u32 rows_of(const HopperProductArgs& p, int matrix) { return matrix == 0 ? p.n : matrix == 1 ? p.n1 : p.n2; }
// What the norm multiplies by, from the warps' sums of squares.
DI float norm_factor(const float* shares, u32 k, float eps) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += shares[w];
    return 1.f / sqrtf(total / (float)k + eps);
}

// Whether a format only moves values within their quads.
template <class F> DI constexpr bool keeps_quads() {
    for (int i = 0; i < 256; i++)
        if ((F::place(i) ^ i) & ~3) return false;
    return true;
}
DI float4 plus(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }
DI float4 times(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }
DI float largest_of(float4 x) { return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))); }
DI float squares_of(float4 x) { return fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, x.w * x.w))); }

// A warp's operands for its unit of a product's input, times the norm's weights; zeros where it has none (`works`). `inverse` undoes their scaling; gives the sum of the input's
// squares. `table` is where sums of x go, `ready` waits for the input.
template <class F, class Ready>
DI float layer_operands(u32 (&b)[4][2], float& inverse, const LayerProduct& p, u32 unit, bool works, u32 staging, u32 table, const Ready& ready) {
    constexpr bool DIRECT = keeps_quads<F>();
    constexpr int QUADS = DIRECT ? 4 : 2, STEPS = F::SUB / 16;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    // The lane's quads: those of its operands, which another lane has too, or, where values move, every 32nd.
    u32 quads[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) quads[i] = (works ? unit * 256 : 0) + (DIRECT ? 16 * own_step<F>(g >> 1, i) + 4 * t : 128 * i + 4 * lane);
    float4 v[QUADS], w[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) w[i] = p.norm ? *(const float4*)(p.norm + quads[i]) : make_float4(1.f, 1.f, 1.f, 1.f);
    ready();
#pragma unroll
    for (int i = 0; i < QUADS; i++) v[i] = __ldcg((const float4*)(p.x + quads[i]));
    if (p.a.parts > 0) {
        float4 sum[QUADS], more[2][QUADS];
        for (int part = 0; part < p.a.parts; part += 2) {
#pragma unroll
            for (int j = 0; j < 2; j++) // a slice that is not there is read again
#pragma unroll
                for (int i = 0; i < QUADS; i++) more[j][i] = __ldcg((const float4*)(p.parts + min(part + j, p.a.parts - 1) * p.a.k + quads[i]));
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < QUADS; i++)
                    if (part + j < p.a.parts) sum[i] = part + j ? plus(sum[i], more[j][i]) : more[j][i];
        }
#pragma unroll
        for (int i = 0; i < QUADS; i++) v[i] = plus(v[i], sum[i]);
    }
    float squares = 0.f, largest = 0.f, scale;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        squares += squares_of(v[i]), v[i] = times(v[i], w[i]);
        largest = fmaxf(largest, largest_of(v[i]));
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o)), squares += __shfl_xor_sync(~0u, squares, o);
    squares = works ? DIRECT ? squares * 0.5f : squares : 0.f;
    power_of_two(largest, scale, inverse);
    inverse *= 1.f / F::QUANTUM;
    if (!works) scale = 0.f;
    if constexpr (!DIRECT) {
        u32 to[4];
#pragma unroll
        for (int e = 0; e < 4; e++) to[e] = staging + 4 * F::place(4 * lane + e);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2; j++) { // place(i + 128) = place(i) + 128
            *(float*)(smem + to[0] + 512 * j) = v[j].x, *(float*)(smem + to[1] + 512 * j) = v[j].y;
            *(float*)(smem + to[2] + 512 * j) = v[j].z, *(float*)(smem + to[3] + 512 * j) = v[j].w;
        }
        __syncwarp();
    }
    const float rest = g & 1 ? 1.f : 0.f; // whether a lane has what rounding leaves
#pragma unroll
    for (int i = 0; i < 4 / STEPS; i++) {
        float sum = 0.f;
#pragma unroll
        for (int s = i * STEPS; s < (i + 1) * STEPS; s++) {
            const int step = own_step<F>(g >> 1, s);
            const float4 q = DIRECT ? v[s] : *(const float4*)(smem + staging + 64 * step + 16 * t);
            float f[4];
            if constexpr (DIRECT) f[F::place(0) & 3] = q.x, f[F::place(1) & 3] = q.y, f[F::place(2) & 3] = q.z, f[F::place(3) & 3] = q.w;
            else f[0] = q.x, f[1] = q.y, f[2] = q.z, f[3] = q.w;
            const float lower = __uint_as_float((u32)(127 - F::shift(step)) << 23);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float all = f[e] * scale, high = low_half(pack_halves(all, 0.f)), h = low_half(pack_halves(fmaf(-rest, high, all), 0.f));
                sum += h, f[e] = h * lower;
            }
            b[s][0] = pack_halves(f[0], f[1]), b[s][1] = pack_halves(f[2], f[3]);
        }
        if constexpr (F::OFFSET != 0 || F::MINIMUM) {
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const int group = 4 * i + (g >> 1), column = g & 1;
            if constexpr (FOLDED<F, ONE_ROW>) {
                if (t == 0) *(float*)(smem + table + group * 32 + column * 4) = sum;
            } else if (t == 0)
                *(float*)(smem + table + group * 8 + column * 4) = sum * ((F::OFFSET ? -(float)F::OFFSET : 1.f) * F::QUANTUM);
        }
    }
    if constexpr (FOLDED<F, ONE_ROW>) fold_sums<F>(table);
    __syncwarp();
    return squares;
}

// Keeps a value in a register, where it would be computed anew in every round of a loop.
DI void keep(u32& value) { asm volatile("" : "+r"(value)); }

// One of the launch's products, by the warps that multiply. `ready` waits for the input, `loaded` counts the blocks that have read it.
template <class F, int PIECES, class Ready> DI void layer_multiply(const LayerProduct& phase, const LayerRing& ring, LayerPlace& at, u32* loaded, const Ready& ready) {
    constexpr int OWN = WARPS / PIECES, THREADS = WARPS * 32;
    const HopperProductArgs& p = phase.a;
    const LayerGroups groups(p);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
    u32 t = lane & 3, own[4], b[4][2], table = ring.fixed + LayerLayout::TABLES + warp * layer_table<F>();
    const u32 part = warp / OWN, within = warp % OWN, unit = groups.slice * p.span + part * p.piece + within;
    const bool works = within < p.piece && unit < p.k / 256;
    float inverse;
    const float squares = layer_operands<F>(b, inverse, phase, unit, works, ring.fixed + LayerLayout::STAGING + warp * 1024, table, ready);
    if (phase.norm) {
        if (lane == 0) ring.shares()[warp] = squares;
        named_sync<1, THREADS>();
        named_arrive<7, THREADS + 32>();
        if (p.parts && threadIdx.x == 0) count_up(loaded);
        inverse *= norm_factor(ring.shares(), p.k, p.eps);
    }
    own_columns(own);
    u32 row = part * ring.slot_bytes + (works ? g * p.pitch + within * F::UNIT : 0), eight = 8 * p.pitch, odd = F::UNIT % 4 && works ? within % 2 : 0, sums = ring.fixed + LayerLayout::SUMS + (warp * 16 + 8 * t + g) * 4;
    u32 barriers = ring.full(part), size = ring.slot_bytes, columns = lane >> 2 < 2 ? table + 16 * lane : 0;
    keep(t), keep(table), keep(row), keep(eight), keep(odd), keep(sums), keep(barriers), keep(size);
#pragma unroll
    for (int i = 0; i < 4; i++) keep(own[i]);
    auto multiply = [&](u32 slot, float (&acc)[4]) {
        const u32 top = slot * size + row, bottom = top + eight;
        auto of_group = [&](int i) { return *(const float2*)(smem + table + 8 * t + 32 * i); };
        auto fold = [&]() { return columns ? *(const uint4*)(smem + columns) : make_uint4(0, 0, 0, 0); };
        auto run = [&](auto row0, auto row1) { multiply_spread<F, decltype(row0)::PAST, false>(row0, row1, t, b, own, of_group, fold, 256, acc); };
        if (F::UNIT % 4 == 0 || odd == 0) run(Row<0>{smem + top}, Row<0>{smem + bottom});
        else run(Row<16>{smem + top - 2}, Row<16>{smem + bottom - 2});
    };
    // The sums of one stage or two, which the warps write side by side.
    auto put = [&](const float (&acc)[4], int which) {
        const float sum = sum_of_quad(acc, t);
        if (t < 2) *(float*)(smem + sums + (at.buffer * 2 + which) * WARPS * 64) = sum * inverse;
    };
#pragma unroll 1
    for (int left = groups.count() * p.turns; left > 0; left -= 2) {
        const u32 slot = at.slot, round = at.round;
        at.next_slots(PIECES, ring.slots);
        barrier_wait(barriers + 8 * slot, round);
        float acc0[4] = {0.f, 0.f, 0.f, 0.f};
        if (left > 1) { // two at once wait for nothing but memory
            const u32 second = at.slot;
            float acc1[4] = {0.f, 0.f, 0.f, 0.f};
            barrier_wait(barriers + 8 * second, at.round);
            at.next_slots(PIECES, ring.slots);
            multiply(slot, acc0), multiply(second, acc1);
            __syncwarp();
            if (lane == 0) barrier_arrive(barriers + 8 * slot + LayerLayout::EMPTY), barrier_arrive(barriers + 8 * second + LayerLayout::EMPTY);
            barrier_wait(ring.drained(at.buffer), at.again ^ 1);
            put(acc0, 0), put(acc1, 1);
        } else {
            multiply(slot, acc0);
            __syncwarp();
            if (lane == 0) barrier_arrive(barriers + 8 * slot + LayerLayout::EMPTY);
            barrier_wait(ring.drained(at.buffer), at.again ^ 1);
            put(acc0, 0);
        }
        __syncwarp();
        barrier_join(FILLED + at.buffer, THREADS + 32);
        at.next_buffer();
    }
}

// Adds up the sums of the warps, of two stages at a time, by a warp of its own, which does every second pair; `turn` is whether the next one is another warp's. `counter`, if any,
// tells the other blocks what is done.
DI void layer_add(const LayerProduct& phase, const LayerRing& ring, int& buffer, bool& turn, u32* counter) {
    const HopperProductArgs& p = phase.a;
    const LayerGroups groups(p);
    const int lane = threadIdx.x & 31, half = lane >> 4;
    const bool gated = p.becomes == GATED;
    int group = groups.first;
#pragma unroll 1
    for (int left = groups.count() * p.turns; left > 0; left -= 2, group += gated ? groups.step : 2 * groups.step, turn = !turn, buffer = (buffer + 1) % LAYER_SUMS) {
        if (turn) continue;
        // Half a warp has the rows of a group, or of a pair's one matrix.
        int within = group + (gated ? 0 : half * groups.step), matrix = 0;
        const bool there = within < groups.all;
        u32 n = p.n;
        while (!gated && there && within * 16 >= n) within -= (n + 15) / 16, n = rows_of(p, ++matrix);
        const u32 row = within * 16 + (lane & 15);
        const bool mine = there && row < n;
        const float held = mine && p.becomes == RESIDUAL ? __ldcg(phase.residual + row) : 0.f;
        barrier_sync(FILLED + buffer, WARPS * 32 + 32);
        const float* column = ring.sums(buffer) + half * WARPS * 16 + (lane & 15);
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += column[w * 16];
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.drained(buffer));
        if (gated) {
            const float up = __shfl_xor_sync(~0u, sum, 16);
            if (half == 0 && mine) phase.outputs[0][row] = (p.activation ? GatedMatrices::gelu_tanh(sum) : sum / (1.f + expf(-sum))) * up, phase.outputs[1][row] = up;
        } else if (mine) {
            phase.outputs[matrix][(p.becomes == SLICES ? groups.slice * n : 0) + row] = sum;
            if (p.becomes == RESIDUAL) phase.sums[row] = held + sum;
        }
        __syncwarp();
        if (counter && lane == 0) count_up(counter, gated || left == 1 ? 1 : 2);
    }
}

// The weights of one of the products, by one thread.
template <int PIECES>
DI void layer_copy(const HopperProductArgs& p, const TensorMap* map0, const TensorMap* map1, const TensorMap* map2, const LayerRing& ring, LayerPlace& at, u64 policy) {
    const LayerGroups groups(p);
    const u32 start = groups.slice * PIECES * p.step;
#pragma unroll 1
    for (int group = groups.first; group < groups.all; group += groups.step) {
        int within = group, matrix = 0;
        if (p.turns == 1)
            while (within * 16 >= rows_of(p, matrix)) within -= (rows_of(p, matrix++) + 15) / 16;
#pragma unroll 1
        for (int turn = 0; turn < p.turns; turn++) {
            const int which = matrix + turn;
            const TensorMap* map = which == 0 ? map0 : which == 1 ? map1 : map2;
#pragma unroll 1
            for (int piece = 0; piece < PIECES; piece++) {
                barrier_wait(ring.empty(at.slot), at.round ^ 1);
                if (++at.issued > IN_FLIGHT) {
                    const bool before = at.slot < IN_FLIGHT;
                    barrier_wait(ring.full(before ? at.slot + ring.slots - IN_FLIGHT : at.slot - IN_FLIGHT), at.round ^ before);
                }
                barrier_expect(ring.full(at.slot), 16 * p.pitch);
                box_copy(ring.shared + at.slot * ring.slot_bytes, map, start + piece * p.step, within * 16, ring.full(at.slot), policy);
                at.next_slots(1, ring.slots);
            }
        }
    }
}

// A block's share of a normed row, and of the input's sums, by a warp of its own, once the others have the norm's factor.
DI void normed_share(const LayerProduct& phase, const LayerRing& ring, u32* counter, u32* loaded) {
    const HopperProductArgs& p = phase.a;
    barrier_sync(7, WARPS * 32 + 32);
    const float factor = norm_factor(ring.shares(), p.k, p.eps);
    if (p.parts) { // the sums may take the place of the input
        if ((threadIdx.x & 31) == 0) wait_for_count(loaded, gridDim.x);
        __syncwarp();
    }
    for (u32 i = blockIdx.x * 32 + (threadIdx.x & 31); i < p.k; i += gridDim.x * 32) {
        float x = __ldcg(phase.x + i);
        if (p.parts) {
            float sum = __ldcg(phase.parts + i);
            for (int part = 1; part < p.parts; part++) sum += __ldcg(phase.parts + part * p.k + i);
            x += sum;
            phase.joined[i] = sum, phase.sums[i] = x;
        }
        phase.normed[i] = x * factor * phase.norm[i];
    }
    __syncwarp();
    if (counter && (threadIdx.x & 31) == 0) count_up(counter);
}

// The formats of the products are among Fs, by their numbers.
template <int PIECES, class... Fs>
__global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    hopper_layer(const __grid_constant__ LayerProducts phases, const __grid_constant__ HopperLayerArgs c, const __grid_constant__ TensorMap attended, const __grid_constant__ TensorMap gate,
                 const __grid_constant__ TensorMap up, const __grid_constant__ TensorMap down, const __grid_constant__ TensorMap next0, const __grid_constant__ TensorMap next1,
                 const __grid_constant__ TensorMap next2) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const LayerRing ring{c.slot_bytes, c.slots, c.slot_bytes * c.slots, shared_address(0)};
    if (threadIdx.x == WARPS * 32) prefetch_map(&attended), prefetch_map(&gate), prefetch_map(&up), prefetch_map(&down), prefetch_map(&next0), prefetch_map(&next1), prefetch_map(&next2);
    if (threadIdx.x == 0) {
        for (int i = 0; i < ring.slots; i++) barrier_init(ring.full(i), 1), barrier_init(ring.empty(i), WARPS / PIECES);
        for (int i = 0; i < LAYER_SUMS; i++) barrier_init(ring.drained(i), 1);
        barriers_ready();
    }
    __syncthreads();
    launch_dependents();
    LayerPlace at{0, 0, 0, 0};
    // Each product but the last raises its counter to this.
    auto target = [&](int phase) { return phases.at[phase].a.groups * phases.at[phase].a.slices + (phases.at[phase].norm ? gridDim.x : 0); };
    auto counter = [&](int phase) { return phase + 1 < PHASES ? layer_counts[phase] : nullptr; };
    // What is left when nobody looks at the counters any more: two warps of each block say so.
    auto end = [&]() {
        if (atomicAdd(layer_counts[ENDED], 1) == 2 * gridDim.x - 1)
            for (int i = 0; i < COUNTS; i++) atomicExch(layer_counts[i], 0);
    };
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (warp == WARPS) {
            if (lane == 0) {
                const u64 policy = evict_first_policy();
#pragma unroll 1
                for (int phase = 0; phase < PHASES; phase++) {
                    const TensorMap* const first = phase == 0 ? &attended : phase == 1 ? &gate : phase == 2 ? &down : &next0;
                    layer_copy<PIECES>(phases.at[phase].a, first, phase == 1 ? &up : &next1, &next2, ring, at, policy);
                }
            }
        } else if (warp == WARPS + 1) {
#pragma unroll 1
            for (int phase = 0; phase < PHASES; phase++)
                if (phases.at[phase].norm)
                    for (u32 i = 32 * lane; i < phases.at[phase].a.k; i += 32 * 32) prefetch_line(phases.at[phase].norm + i);
#pragma unroll 1
            for (int phase = 0; phase < PHASES; phase++)
                if (phases.at[phase].norm) normed_share(phases.at[phase], ring, counter(phase), layer_counts[LOADED]);
            if (lane == 0) end();
        } else {
            int buffer = 0;
            bool turn = warp == WARPS + 3;
            wait_for_predecessor();
#pragma unroll 1
            for (int phase = 0; phase < PHASES; phase++) {
                // All rows that the next ones are added to are there.
                if (phase == 2 && phases.at[2].a.becomes == RESIDUAL && LayerGroups(phases.at[2].a).count() > 0) {
                    if (lane == 0) wait_for_count(layer_counts[0], target(0));
                    __syncwarp();
                }
                layer_add(phases.at[phase], ring, buffer, turn, counter(phase));
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
#pragma unroll 1
        for (int phase = 0; phase < PHASES; phase++) {
            auto ready = [&]() {
                if (phase == 0) return wait_for_predecessor();
                if (threadIdx.x == 0) wait_for_count(layer_counts[phase - 1], target(phase - 1));
                named_sync<1, WARPS * 32>();
            };
            int format = 0;
            ((phases.at[phase].a.format == format++ ? layer_multiply<Fs, PIECES>(phases.at[phase], ring, at, layer_counts[LOADED], ready) : void()), ...);
        }
        if (threadIdx.x == 0) end();
    }
}
