
// Tiles of 64 weight rows (columns of the result) by 32 input rows, 32 of k at a time, by four simdgroups with 16 rows by 32
// columns each. Operands are float: inputs and weights of any magnitude go through as they are.
constant uint TILE_N = 64;
constant uint TILE_M = 32;
constant uint TILE_K = 32;

// Row r of the tile is input row row0 + r, or with ROUTED the token of slot slots[row0 + r]; rows from `rows` on do not exist.
template <typename W, bool ROUTED>
inline void multiply_tile(thread const W& weight, device const uchar* x, device uchar* y, constant MatmulArgs& args, uint batch,
                          uint row0, uint rows, device const uint* slots, uint column0, threadgroup float* shared,
                          uint thread_index, uint simdgroup) {
    threadgroup float* ws = shared;
    threadgroup float* xs = shared + TILE_N * TILE_K;
    simdgroup_float8x8 sums[2][4];
    for (uint r = 0; r < 2; r++) {
        for (uint c = 0; c < 4; c++) sums[r][c] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    }
    const uint sub_row = simdgroup / 2 * 16, sub_column = simdgroup % 2 * 32;
    // What this thread brings into the tile: sixteen values of a weight row, eight of an input row.
    const uint w_row = thread_index / 2, w_part = thread_index % 2, x_row = thread_index / 4, x_part = thread_index % 4;
    ulong source = 0;
    if (x_row < rows) source = ROUTED ? slots[row0 + x_row] / args.top_k : row0 + x_row;
    for (uint k0 = 0; k0 < args.k; k0 += TILE_K) {
        float w[16], v[8];
        if (column0 + w_row < args.n && k0 + 16 * w_part < args.k) {
            weight.chunk(column0 + w_row, k0 / 16 + w_part, args.k, w);
        } else {
            for (uint i = 0; i < 16; i++) w[i] = 0.0f;
        }
        if (x_row < rows && k0 + 8 * x_part < args.k) {
            x_values<8>(x, batch, source, k0 + 8 * x_part, args, v);
        } else {
            for (uint i = 0; i < 8; i++) v[i] = 0.0f;
        }
        for (uint i = 0; i < 16; i++) ws[w_row * TILE_K + 16 * w_part + i] = w[i];
        for (uint i = 0; i < 8; i++) xs[x_row * TILE_K + 8 * x_part + i] = v[i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint l = 0; l < TILE_K; l += 8) {
            simdgroup_float8x8 a[2], b[4];
            for (uint r = 0; r < 2; r++) simdgroup_load(a[r], xs + (sub_row + 8 * r) * TILE_K + l, TILE_K);
            for (uint c = 0; c < 4; c++) {
                simdgroup_load(b[c], ws + (sub_column + 8 * c) * TILE_K + l, TILE_K, ulong2(0, 0), true);
            }
            for (uint r = 0; r < 2; r++) {
                for (uint c = 0; c < 4; c++) simdgroup_multiply_accumulate(sums[r][c], a[r], b[c], sums[r][c]);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Out through threadgroup memory, so that a partial tile stores only what exists.
    for (uint r = 0; r < 2; r++) {
        for (uint c = 0; c < 4; c++) {
            simdgroup_store(sums[r][c], shared + (sub_row + 8 * r) * TILE_N + sub_column + 8 * c, TILE_N);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = thread_index; e < rows * TILE_N; e += 128) {
        const uint r = e / TILE_N, column = column0 + e % TILE_N;
        const ulong row = ROUTED ? ulong(slots[row0 + r]) : ulong(batch) * args.m + row0 + r;
        if (column < args.n) store_y(y, row * args.n + column, shared[e]);
    }
}

// output[b][i][j]; grid of column tiles, row tiles, batches.
template <typename W>
[[kernel]] void mm(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                   device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                   constant MatmulArgs& args [[buffer(5)]], threadgroup float* shared [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    const uint row0 = group.y * TILE_M;
    multiply_tile<W, false>(weight, x, y, args, group.z, row0, min(args.m - row0, TILE_M), nullptr, group.x * TILE_N, shared,
                            thread_index, simdgroup);
}

// The tile kernel over the lists of map_experts; grid of column tiles, tiles of all lists. There are at most slots / 32 whole tiles
// and one partial one an expert; what the grid has beyond the lists' tiles ends at once.
template <typename W>
[[kernel]] void mm_id(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                      device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                      constant MatmulArgs& args [[buffer(5)]], device const uint* counts [[buffer(6)]],
                      device const uint* lists [[buffer(7)]], threadgroup float* shared [[threadgroup(0)]],
                      uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    uint tile = group.y, first = 0, expert = 0, count = 0;
    for (; expert < args.n_experts; expert++) {
        count = counts[expert];
        const uint tiles = (count + TILE_M - 1) / TILE_M;
        if (tile < tiles) break;
        tile -= tiles;
        first += count;
    }
    if (expert == args.n_experts) return;
    const W weight(data, scales, biases, args, expert);
    const uint row0 = tile * TILE_M;
    multiply_tile<W, true>(weight, x, y, args, 0, first + row0, min(count - row0, TILE_M), lists, group.x * TILE_N, shared,
                           thread_index, simdgroup);
}

