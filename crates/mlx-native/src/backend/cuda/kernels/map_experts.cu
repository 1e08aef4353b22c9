// One list of slots for each expert, in ascending order, one list after the other: counts[e] slots of expert e; places[s] is where slot s is in the lists.
// Then the tiles of these lists, tile_rows slots at most: expert, first slot's place in the lists, and slots of each; what is left of `tiles` has no slots. A slot
// whose id is no expert is in no list; its row becomes NaN in every output. One block, whose warps count the slots of a part of the ids each: `counted` has a word for each
// warp and expert of a range.
constexpr uint MAP_WARPS = 32, RANGE = 512, NOWHERE = ~0u, MOST_OUTPUTS = 16;
// The outputs of products that share the lists, n values a row; none where n is 0.
struct RoutedOutputs { float* y[MOST_OUTPUTS]; uint n[MOST_OUTPUTS]; };

// The sum of what the threads before this one have, and of all of them.
inline uint2 sum_before(uint value, uint* warps) {
    uint sum = value;
    for (uint step = 1; step < 32; step *= 2) {
        const uint below = __shfl_up_sync(FULL, sum, step);
        if (lane_index() >= step) sum += below;
    }
    if (lane_index() == 31) warps[warp_index()] = sum;
    __syncthreads();
    const uint others = warps[lane_index()];
    const uint before = __reduce_add_sync(FULL, lane_index() < warp_index() ? others : 0), all = __reduce_add_sync(FULL, others);
    __syncthreads();
    return make_uint2(before + sum - value, all);
}

template <int = 0>
__global__ void __launch_bounds__(1024) map_experts(const uint* ids, uint* counts, uint* lists, uint* places, uint4* tiles, const __grid_constant__ RoutedOutputs outputs, ProductArgs args,
                                                    uint n_tiles, uint tile_rows, ulong* fault) {
    extern __shared__ uint counted[];
    __shared__ uint warps[MAP_WARPS], starts[RANGE];
    begin();
    const uint lane = lane_index(), warp = warp_index(), slots = args.m * args.top_k, below = (1u << lane) - 1;
    // A warp's slots, whole groups of 32.
    const uint first = warp * DIVIDE_UP(slots, 1024) * 32, end = min(first + DIVIDE_UP(slots, 1024) * 32, slots);
    uint next_place = 0, next_tile = 0;
    for (uint base = 0; base < args.n_experts; base += RANGE) {
        const uint range = min(args.n_experts - base, RANGE);
        uint* mine = counted + warp * range;
        for (uint e = lane; e < range; e += 32) mine[e] = 0;
        __syncwarp();
        for (uint slot = first + lane; slot - lane < end; slot += 32) {
            const uint expert = (slot < end ? ids[slot] : NOWHERE) - base;
            const uint alike = __match_any_sync(FULL, expert);
            if (expert < range && (alike & below) == 0) mine[expert] += __popc(alike);
            __syncwarp();
        }
        __syncthreads();
        // Of each expert, how many slots the warps before have.
        uint count = 0;
        if (threadIdx.x < range) {
            for (uint w = 0; w < MAP_WARPS; w++) {
                const uint more = counted[w * range + threadIdx.x];
                counted[w * range + threadIdx.x] = count;
                count += more;
            }
            counts[base + threadIdx.x] = count;
        }
        const uint expert_tiles = DIVIDE_UP(count, tile_rows);
        const uint2 place = sum_before(count, warps), tile = sum_before(expert_tiles, warps);
        if (threadIdx.x < range) {
            starts[threadIdx.x] = next_place + place.x;
            for (uint t = 0; t < expert_tiles; t++) {
                tiles[next_tile + tile.x + t] = make_uint4(base + threadIdx.x, next_place + place.x + t * tile_rows, min(count - t * tile_rows, tile_rows), 0);
            }
        }
        next_place += place.y;
        next_tile += tile.y;
        __syncthreads();
        for (uint slot = first + lane; slot - lane < end; slot += 32) {
            const uint id = slot < end ? ids[slot] : NOWHERE, expert = id - base;
            const uint alike = __match_any_sync(FULL, expert);
            uint before = 0;
            if (expert < range) {
                before = mine[expert];
                const uint at = starts[expert] + before + __popc(alike & below);
                lists[at] = slot;
                places[slot] = at;
            } else if (slot < end && id >= args.n_experts) {
                places[slot] = NOWHERE;
            }
            __syncwarp();
            if (expert < range && (alike & below) == 0) mine[expert] = before + __popc(alike);
            __syncwarp();
        }
        __syncthreads();
    }
    for (uint t = next_tile + threadIdx.x; t < n_tiles; t += 1024) tiles[t] = make_uint4(0, 0, 0, 0);
    if (next_place == slots) return;
    for (uint slot = warp; slot < slots; slot += 32) {
        if (ids[slot] < args.n_experts) continue;
        for (uint i = 0; i < MOST_OUTPUTS; i++)
            for (uint j = lane; j < outputs.n[i]; j += 32) outputs.y[i][ulong(slot) * outputs.n[i] + j] = not_a_number();
        if (lane == 0) report(fault, slot, ids[slot]);
    }
}
