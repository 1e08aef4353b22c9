
// A tile by simdgroup matrices: four simdgroups with 16 rows by 32 columns each.
template <typename W, typename T, bool ROUTED>
inline void multiply_tile(thread const W& weight, device const uchar* x, device uchar* y, constant MatmulArgs& args, uint batch,
                          uint row0, uint rows, device const uint* slots, uint column0, threadgroup uchar* shared,
                          uint thread_index, uint simdgroup) {
    const TileLoader<W, T> tile = TileLoader<W, T>::template make<ROUTED>(args, batch, row0, rows, slots, column0, shared, thread_index);
    threadgroup float* floats = (threadgroup float*)shared;
    simdgroup_float8x8 sums[2][4];
    for (uint r = 0; r < 2; r++) {
        for (uint c = 0; c < 4; c++) sums[r][c] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    }
    const uint sub_row = simdgroup / 2 * 16, sub_column = simdgroup % 2 * 32;
    uint2 element_row = uint2(0), element_column = uint2(0);
    if (Scaled<T>::VALUE) {
        const uint2 places = element_places(floats, thread_index);
        element_row = places / 8;
        element_column = places % 8;
    }
    for (uint k0 = 0; k0 < args.k; k0 += TILE_K) {
        tile.load(weight, x, args, k0);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Sums of this step, relative to its scales; without scales the sums themselves.
        simdgroup_float8x8 step[2][4];
        for (uint r = 0; r < 2; r++) {
            for (uint c = 0; c < 4; c++) step[r][c] = Scaled<T>::VALUE ? make_filled_simdgroup_matrix<float, 8>(0.0f) : sums[r][c];
        }
        for (uint l = 0; l < TILE_K; l += 8) {
            simdgroup_matrix<T, 8, 8> a[2], b[4];
            for (uint r = 0; r < 2; r++) simdgroup_load(a[r], tile.xs + (sub_row + 8 * r) * TILE_K + l, TILE_K);
            for (uint c = 0; c < 4; c++) {
                simdgroup_load(b[c], tile.ws + (sub_column + 8 * c) * TILE_K + l, TILE_K, ulong2(0, 0), true);
            }
            for (uint r = 0; r < 2; r++) {
                for (uint c = 0; c < 4; c++) simdgroup_multiply_accumulate(step[r][c], a[r], b[c], step[r][c]);
            }
        }
        if (Scaled<T>::VALUE) {
            float2 across[4];
            for (uint c = 0; c < 4; c++) {
                threadgroup const float* scales = tile.w_scales + sub_column + 8 * c;
                across[c] = float2(scales[element_column.x], scales[element_column.y]);
            }
            for (uint r = 0; r < 2; r++) {
                threadgroup const float* scales = tile.x_scales + sub_row + 8 * r;
                const float2 down = float2(scales[element_row.x], scales[element_row.y]);
                for (uint c = 0; c < 4; c++) {
                    const float2 factor = down * across[c];
                    for (uint i = 0; i < 2; i++) sums[r][c].thread_elements()[i] += step[r][c].thread_elements()[i] * factor[i];
                }
            }
        } else {
            for (uint r = 0; r < 2; r++) {
                for (uint c = 0; c < 4; c++) sums[r][c] = step[r][c];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Out through threadgroup memory, so that a partial tile stores only what exists.
    for (uint r = 0; r < 2; r++) {
        for (uint c = 0; c < 4; c++) {
            simdgroup_store(sums[r][c], floats + (sub_row + 8 * r) * TILE_N + sub_column + 8 * c, TILE_N);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = thread_index; e < rows * TILE_N; e += 128) {
        const uint column = column0 + e % TILE_N;
        if (column < args.n) store_y(y, output_row<ROUTED>(args, batch, row0, e / TILE_N, slots) * args.n + column, floats[e]);
    }
}

// output[b][i][j]; grid of column tiles, row tiles, batches.
template <typename W, typename T>
[[kernel, max_total_threads_per_threadgroup(128)]] void mm(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                   device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                   constant MatmulArgs& args [[buffer(5)]], threadgroup uchar* shared [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    const uint row0 = group.y * TILE_M;
    multiply_tile<W, T, false>(weight, x, y, args, group.z, row0, min(args.m - row0, TILE_M), nullptr, group.x * TILE_N, shared,
                               thread_index, simdgroup);
}

// The tile kernel over the lists of map_experts; grid of column tiles, tiles of all lists. What the grid has beyond the lists'
// tiles ends at once.
template <typename W, typename T>
[[kernel, max_total_threads_per_threadgroup(128)]] void mm_id(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                      device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                      constant MatmulArgs& args [[buffer(5)]], device const uint* counts [[buffer(6)]],
                      device const uint* lists [[buffer(7)]], threadgroup uchar* shared [[threadgroup(0)]],
                      uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    uint expert, first, rows;
    if (!expert_tile(args, counts, group.y, expert, first, rows)) return;
    const W weight(data, scales, biases, args, expert);
    multiply_tile<W, T, true>(weight, x, y, args, 0, first, rows, lists, group.x * TILE_N, shared, thread_index, simdgroup);
}
