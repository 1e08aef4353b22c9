// How the sums of the widest tiles leave a block.

// A warp's work that sends off the sums of a warpgroup, in pieces: to the output, or as a part of a tile to the held memory, where parts are added up. `part_of` says where a
// block's and a warpgroup's part is, `tile_of` what a tile is.
template <class L, int MI, int NT, int CLUSTER, class PartOf, class TileOf>
DI void send_sums(const Schedule& work, const TensorMap* output, float4* sums, const PartOf& part_of, const TileOf& tile_of, bool staged) {
    constexpr int PIECES = L::PIECES, OF_TILE = MI * NT / L::PIECE;
    // Found anew each time: 40 registers are all that there are.
    auto thread = [&]() {
        u32 id;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
        return id - 64;
    };
    auto group_of = [&]() { return thread() / 32; };
    auto rank = [&]() {
        u32 rank = 0;
        if (CLUSTER > 1) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        return rank;
    };
    auto leads = [&]() { return (thread() & 31) == 0; };
    auto at_slot = [&](u32 base, u32 i, u32 bytes) { return base + (group_of() * PIECES + i % PIECES) * bytes; };
    u32 sent = 0; // pieces so far
    auto piece_at = [&](u32 i) { return at_slot(L::STORE, i, L::PIECE_BYTES); };
    auto release = [&](u32 i) { barrier_arrive(shared_address(at_slot(L::STORE_EMPTY, i, 8))); };
    auto send = [&](bool keep, auto copy) {
        if (leads()) {
            barrier_wait(shared_address(at_slot(L::STORE_FULL, sent, 8)), sent / PIECES & 1);
            copy(shared_address(piece_at(sent)));
            stores_commit();
            stores_read<1>();
            if (sent > 0 && !keep) release(sent - 1);
        }
        sent++;
    };
    auto held = [&](int part, int piece) { return (u8*)sums + ((u64)part * OF_TILE + piece) * L::PIECE_BYTES; };
    // A tile's first row of x, and a warpgroup's first features as the output's map counts them.
    auto place_of = [&](int tile) {
        const Tile here = tile_of(tile);
        return make_int2(here.token, ((here.row_tile * CLUSTER + rank()) * L::ROWS + group_of() * 64 * MI) / 32);
    };
    auto store_piece = [&](int2 place, int piece, u32 from) { tile_store(output, 0, place.x + piece % (NT / L::PIECE) * L::PIECE, place.y + piece / (NT / L::PIECE) * 2, from); };
    // This cluster's share of a tile whose parts several have: some of its pieces, added up in the two buffers of the last ones.
    u32 parity = 0;
    auto add_parts = [&](int tile) {
        const u32 sum = piece_at(sent - 1), more = piece_at(sent - 2), full = shared_address(L::PARTS_FULL) + 8 * group_of();
        const int one = work.owner(tile), count = work.holder(tile) - one + 1, share = work.cluster - one;
        // Only the first cluster may have the tile as its second.
        const int second = part_of(one * CLUSTER + rank(), group_of(), work.first(one) < tile * work.units), others = part_of(one * CLUSTER + rank(), group_of(), false);
        auto nth = [&](int i) { return i == 0 ? second : others + i * part_of(CLUSTER, 0, false); };
#pragma unroll 1
        for (int i = 0; i < count; i++) wait_for_flag(held_flags + nth(i));
        memory_fence();
#pragma unroll 1
        for (int p = OF_TILE * share / count; p < OF_TILE * (share + 1) / count; p++) {
#pragma unroll 1
            for (int i = 1; i < count; i++) {
                if (leads()) {
                    barrier_expect(full, (i == 1 ? 2 : 1) * L::PIECE_BYTES);
                    if (i == 1) bulk_copy(shared_address(sum), held(nth(0), p), L::PIECE_BYTES, full, evict_first_policy());
                    bulk_copy(shared_address(more), held(nth(i), p), L::PIECE_BYTES, full, evict_first_policy());
                }
                barrier_wait(full, parity);
                parity ^= 1;
#pragma unroll 1
                for (int at = (thread() & 31) * 16; at < L::PIECE_BYTES; at += 512) {
                    const float4 b = *(const float4*)(smem + more + at);
                    float4& s = *(float4*)(smem + sum + at);
                    s = make_float4(s.x + b.x, s.y + b.y, s.z + b.z, s.w + b.w);
                }
                proxy_fence();
                __syncwarp();
            }
            if (leads()) {
                store_piece(place_of(tile), p, shared_address(sum));
                stores_commit();
                stores_read<0>();
            }
            __syncwarp();
        }
        // The last who has read a part lowers its flag.
#pragma unroll 1
        for (int i = 0; i < count; i++)
            if (leads() && atomicAdd(held_flags + nth(i), 1) == count) held_flags[nth(i)] = 0;
    };
    wait_for_predecessor();
#pragma unroll 1
    for (int v = 0; v < work.total;) {
        int tile, unit;
        work.at(v, tile, unit);
        const int end = work.run_end(v, unit);
        const bool part = work.is_part(v, unit), last = work.aside && end == work.shared;
        if (part || staged) {
            const int2 place = place_of(tile);
#pragma unroll 1
            do {
                const u32 piece = sent % OF_TILE;
                // The last two buffers of all parts are kept for adding.
                send(last && piece == OF_TILE - 1, [&](u32 at) {
                    // Parts are read when much else has passed.
                    if (part) bulk_store(held(part_of(blockIdx.x, group_of(), v > 0), piece), at, L::PIECE_BYTES, evict_last_policy());
                    else store_piece(place, piece, at);
                });
            } while (sent % OF_TILE != 0);
        }
        if (part && leads()) {
            stores_done();
            memory_fence();
            raise_flag(held_flags + part_of(blockIdx.x, group_of(), v > 0));
        }
        v = end;
        if (!last) continue;
#pragma unroll 1
        for (int t = work.begin / work.units; t <= tile; t++) add_parts(t);
        if (leads()) release(sent - 2);
    }
    if (leads()) stores_read<0>();
}
