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

// An instruction that all lanes of a warp take at once, with no other effect: after loops that single lanes leave the compiler takes it, not __syncwarp, as a sign that they
// are together, without which shuffles cost more instructions and registers (64 bytes spilled instead of 8 with two formats).
DI void together() {
    u32 nothing = 0;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(nothing));
}

// One of the launch's products, by the warps that multiply. `ready` waits for the input, `loaded` counts the blocks that have read it; `norm` is the number of the input's norm.
template <class F, int PIECES, class Ready> DI void layer_multiply(const LayerProduct& phase, int norm, const LayerRing& ring, LayerPlace& at, u32* loaded, const Ready& ready) {
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
        if (lane == 0) ring.shares(norm)[warp] = squares, barrier_arrive(ring.normed(norm));
        named_sync<1, THREADS>();
        if (p.parts && threadIdx.x == 0) count_up(loaded);
        inverse *= norm_factor(ring.shares(norm), p.k, p.eps);
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
        auto run = [&](auto row0, auto row1) { multiply_spread<F, decltype(row0)::PAST, false>(row0, row1, t, HeldOperands<F>{b, own}, of_group, fold, 256, acc); };
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
        if (t < 2) barrier_arrive(ring.filled(at.buffer));
        __syncwarp();
        together();
        at.next_buffer();
    }
}

// Adds up the sums of the warps, of two stages at a time, by a warp of its own, which does every second pair; `pair` counts them. `counter`, if any, tells the other blocks
// what is done.
DI void layer_add(const LayerProduct& phase, const LayerRing& ring, u32& pair, u32* counter) {
    const HopperProductArgs& p = phase.a;
    const LayerGroups groups(p);
    const int lane = threadIdx.x & 31, half = lane >> 4;
    const bool gated = p.becomes == GATED;
    int group = groups.first;
#pragma unroll 1
    for (int left = groups.count() * p.turns; left > 0; left -= 2, group += gated ? groups.step : 2 * groups.step, pair++) {
        if ((pair ^ threadIdx.x >> 5) & 1) continue;
        const u32 buffer = pair % LAYER_SUMS;
        // Half a warp has the rows of a group, or of a pair's one matrix.
        int within = group + (gated ? 0 : half * groups.step), matrix = 0;
        const bool there = within < groups.all;
        u32 n = p.n;
        while (!gated && there && within * 16 >= n) within -= (n + 15) / 16, n = rows_of(p, ++matrix);
        const u32 row = within * 16 + (lane & 15);
        const bool mine = there && row < n;
        const float held = mine && p.becomes == RESIDUAL ? __ldcg(phase.residual + row) : 0.f;
        barrier_wait(ring.filled(buffer), pair / LAYER_SUMS & 1);
        __syncwarp();
        const float* column = ring.sums(buffer) + half * WARPS * 16 + (lane & 15);
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += column[w * 16];
        barrier_arrive(ring.drained(buffer));
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
DI void normed_share(const LayerProduct& phase, int norm, const LayerRing& ring, u32* counter, u32* loaded) {
    const HopperProductArgs& p = phase.a;
    barrier_wait(ring.normed(norm), 0);
    __syncwarp();
    const float factor = norm_factor(ring.shares(norm), p.k, p.eps);
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
        for (int i = 0; i < LAYER_SUMS; i++) barrier_init(ring.drained(i), 32), barrier_init(ring.filled(i), WARPS * 16);
        for (int i = 0; i < LAYER_NORMS; i++) barrier_init(ring.normed(i), WARPS);
        barriers_ready();
    }
    __syncthreads();
    launch_dependents();
    LayerPlace at{0, 0, 0, 0};
    // Each product but the last raises its counter to this.
    auto target = [&](int phase) { return phases.at[phase].a.groups * phases.at[phase].a.slices + (phases.at[phase].norm ? gridDim.x : 0); };
    // Every second product norms its input.
    auto norm_of = [](int phase) { return phase / 2; };
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
                if (phases.at[phase].norm) normed_share(phases.at[phase], norm_of(phase), ring, counter(phase), layer_counts[LOADED]);
            if (lane == 0) end();
        } else {
            u32 pair = 0;
            wait_for_predecessor();
#pragma unroll 1
            for (int phase = 0; phase < PHASES; phase++) {
                // All rows that the next ones are added to are there.
                if (phase == 2 && phases.at[2].a.becomes == RESIDUAL && LayerGroups(phases.at[2].a).count() > 0) {
                    if (lane == 0) wait_for_count(layer_counts[0], target(0));
                    __syncwarp();
                }
                layer_add(phases.at[phase], ring, pair, counter(phase));
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
            ((phases.at[phase].a.format == format++ ? layer_multiply<Fs, PIECES>(phases.at[phase], norm_of(phase), ring, at, layer_counts[LOADED], ready) : void()), ...);
        }
        if (threadIdx.x == 0) end();
    }
}
