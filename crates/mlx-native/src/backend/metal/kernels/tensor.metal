
// A tile by Metal's tensor operations, which the four simdgroups of a threadgroup run together. Which elements of the result a thread
// holds is up to the device; the product's own index tells.
template <typename W, bool ROUTED>
inline void multiply_tile_tensor(thread const W& weight, device const uchar* x, device uchar* y, constant MatmulArgs& args, uint batch,
                                 uint row0, uint rows, device const uint* slots, uint column0, threadgroup uchar* shared,
                                 uint thread_index) {
    const TileLoader<W, half> tile =
        TileLoader<W, half>::template make<ROUTED>(args, batch, row0, rows, slots, column0, shared, thread_index);
    auto left = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(tile.xs, dextents<int, 2>(TILE_K, TILE_M));
    auto right = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(tile.ws, dextents<int, 2>(TILE_K, TILE_N));
    constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(int(TILE_M), int(TILE_N), int(TILE_K), false, true, false,
                                                                mpp::tensor_ops::matmul2d_descriptor::mode::multiply);
    mpp::tensor_ops::matmul2d<shape, execution_simdgroups<4>> product;
    auto sums = product.template get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
    auto step = product.template get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (sums.is_valid_element(i)) sums[i] = 0.0f;
    }
    for (uint k0 = 0; k0 < args.k; k0 += TILE_K) {
        tile.load(weight, x, args, k0);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        product.run(left, right, step);
        for (ushort i = 0; i < sums.get_capacity(); i++) {
            if (!sums.is_valid_element(i)) continue;
            const auto at = sums.get_multidimensional_index(i);
            sums[i] += step[i] * (tile.x_scales[at[1]] * tile.w_scales[at[0]]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (!sums.is_valid_element(i)) continue;
        const auto at = sums.get_multidimensional_index(i);
        const uint r = uint(at[1]), column = column0 + uint(at[0]);
        if (r < rows && column < args.n) store_y(y, output_row<ROUTED>(args, batch, row0, r, slots) * args.n + column, sums[i]);
    }
}

// output[b][i][j]; grid of column tiles, row tiles, batches.
template <typename W>
[[kernel, max_total_threads_per_threadgroup(128)]] void mm_tensor(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                          device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]],
                          device uchar* y [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                          threadgroup uchar* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    const uint row0 = group.y * TILE_M;
    multiply_tile_tensor<W, false>(weight, x, y, args, group.z, row0, min(args.m - row0, TILE_M), nullptr, group.x * TILE_N, shared,
                                   thread_index);
}

// The large tile by tensor operations, eight simdgroups together. The input's tensor ends with its rows and with k, so a tile at the
// edge reads nothing beyond; grid as mm_large.
template <typename W>
[[kernel, max_total_threads_per_threadgroup(256)]] void mm_large_tensor(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                                device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]],
                                device uchar* y [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                                threadgroup uchar* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                                uint thread_index [[thread_index_in_threadgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    threadgroup half* ws = (threadgroup half*)shared;
    threadgroup float* w_scales = (threadgroup float*)(ws + TILE_N * LARGE_K);
    const uint column0 = group.x * TILE_N, row0 = group.y * LARGE_M;
    device float* first = (device float*)(x + group.z * args.x_batch);
    auto input = tensor<device float, dextents<int, 2>, tensor_inline>(first, dextents<int, 2>(int(args.k), int(args.m)),
                                                                       array<int, 2>{1, int(args.x_row / 4)});
    auto right = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(ws, dextents<int, 2>(LARGE_K, TILE_N));
    auto rows = input.slice(0, int(row0));
    constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(int(LARGE_M), int(TILE_N), int(LARGE_K), false, true, false,
                                                                mpp::tensor_ops::matmul2d_descriptor::mode::multiply);
    mpp::tensor_ops::matmul2d<shape, execution_simdgroups<8>> product;
    auto sums = product.template get_destination_cooperative_tensor<decltype(rows), decltype(right), float>();
    auto step = product.template get_destination_cooperative_tensor<decltype(rows), decltype(right), float>();
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (sums.is_valid_element(i)) sums[i] = 0.0f;
    }
    for (uint k0 = 0; k0 < args.k; k0 += LARGE_K) {
        load_large(weight, args, column0, k0, ws, w_scales, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        auto left = rows.slice(int(k0), 0);
        product.run(left, right, step);
        for (ushort i = 0; i < sums.get_capacity(); i++) {
            if (!sums.is_valid_element(i)) continue;
            sums[i] += step[i] * w_scales[sums.get_multidimensional_index(i)[0]];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (!sums.is_valid_element(i)) continue;
        const auto at = sums.get_multidimensional_index(i);
        const uint row = row0 + uint(at[1]), column = column0 + uint(at[0]);
        if (row < args.m && column < args.n) store_y(y, (ulong(group.z) * args.m + row) * args.n + column, sums[i]);
    }
}

// The same over the lists of map_experts; grid as mm_id.
template <typename W>
[[kernel, max_total_threads_per_threadgroup(128)]] void mm_id_tensor(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                             device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]],
                             device uchar* y [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                             device const uint* counts [[buffer(6)]], device const uint* lists [[buffer(7)]],
                             threadgroup uchar* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                             uint thread_index [[thread_index_in_threadgroup]]) {
    uint expert, first, rows;
    if (!expert_tile(args, counts, group.y, expert, first, rows)) return;
    const W weight(data, scales, biases, args, expert);
    multiply_tile_tensor<W, true>(weight, x, y, args, 0, first, rows, lists, group.x * TILE_N, shared, thread_index);
}
