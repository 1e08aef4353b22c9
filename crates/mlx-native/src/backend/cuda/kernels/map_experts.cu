
// One list of slots for each expert, in ascending order, one list after the other: counts[e] slots of expert e. Then the tiles of these
// lists, tile_rows slots at most: expert, first slot's place in the lists, and slots of each; what is left of `tiles` has no slots. A slot
// whose id is no expert is in no list; its row becomes NaN. One block; a warp for every 32nd expert.
template <int = 0>
__global__ void __launch_bounds__(1024) map_experts(const uint* ids, uint* counts, uint* lists, uint4* tiles, float* y, ProductArgs args,
                                                    uint n_tiles, uint tile_rows, ulong* fault) {
    begin();
    __shared__ uint next_place, next_tile;
    const uint lane = lane_index(), warp = warp_index(), slots = args.m * args.top_k;
    for (uint expert = warp; expert < args.n_experts; expert += 32) {
        uint count = 0;
        for (uint slot = lane; slot < slots; slot += 32) count += ids[slot] == expert ? 1 : 0;
        count = __reduce_add_sync(FULL, count);
        if (lane == 0) counts[expert] = count;
    }
    __syncthreads();
    for (uint expert = warp; expert < args.n_experts; expert += 32) {
        uint place = 0, tile = 0;
        for (uint e = lane; e < expert; e += 32) {
            place += counts[e];
            tile += DIVIDE_UP(counts[e], tile_rows);
        }
        place = __reduce_add_sync(FULL, place);
        tile = __reduce_add_sync(FULL, tile);
        const uint count = counts[expert], expert_tiles = DIVIDE_UP(count, tile_rows);
        for (uint t = lane; t < expert_tiles; t += 32) {
            tiles[tile + t] = make_uint4(expert, place + t * tile_rows, min(count - t * tile_rows, tile_rows), 0);
        }
        if (expert == args.n_experts - 1 && lane == 0) {
            next_place = place + count;
            next_tile = tile + expert_tiles;
        }
        for (uint base = 0; base < slots; base += 32) {
            const uint slot = base + lane;
            const bool mine = slot < slots && ids[slot] == expert;
            const uint all = __ballot_sync(FULL, mine);
            if (mine) lists[place + __popc(all & ((1u << lane) - 1))] = slot;
            place += __popc(all);
        }
    }
    __syncthreads();
    for (uint t = next_tile + threadIdx.x; t < n_tiles; t += 1024) tiles[t] = make_uint4(0, 0, 0, 0);
    if (next_place == slots) return;
    for (uint slot = warp; slot < slots; slot += 32) {
        if (ids[slot] < args.n_experts) continue;
        for (uint j = lane; j < args.n; j += 32) y[ulong(slot) * args.n + j] = not_a_number();
        if (lane == 0) report(fault, slot, ids[slot]);
    }
}
