#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;

struct Shape { uint m, n, k; };

// y[m][n] = x[m][k] w[n][k]^T, x in float, w in half. A threadgroup of four simdgroups makes a tile of 64 columns (n) by
// 32 rows (m); both operands go through threadgroup memory, 32 of k at a time. k % 32 == 0, m and n are free.
constant int ROWS = 32, COLUMNS = 64, DEPTH = 32;

kernel void tensor_matmul(device const float* x [[buffer(0)]], device const half* w [[buffer(1)]], device float* y [[buffer(2)]],
                          constant Shape& shape [[buffer(3)]], threadgroup half* shared [[threadgroup(0)]],
                          uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    threadgroup half* xs = shared;
    threadgroup half* ws = shared + ROWS * DEPTH;
    const uint row0 = group.y * ROWS, column0 = group.x * COLUMNS;
    auto tx = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(xs, dextents<int, 2>(DEPTH, ROWS));
    auto tw = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(ws, dextents<int, 2>(DEPTH, COLUMNS));
    constexpr auto product = matmul2d_descriptor(ROWS, COLUMNS, DEPTH, false, true, false, matmul2d_descriptor::mode::multiply_accumulate);
    matmul2d<product, execution_simdgroups<4>> mm;
    auto acc = mm.get_destination_cooperative_tensor<decltype(tx), decltype(tw), float>();
    for (uint16_t i = 0; i < acc.get_capacity(); i++) if (acc.is_valid_element(i)) acc[i] = 0.0f;
    for (uint k0 = 0; k0 < shape.k; k0 += DEPTH) {
        for (uint e = t; e < uint(ROWS * DEPTH); e += 128) {
            const uint row = row0 + e / DEPTH;
            xs[e] = row < shape.m ? half(x[row * shape.k + k0 + e % DEPTH]) : half(0);
        }
        for (uint e = t; e < uint(COLUMNS * DEPTH); e += 128) {
            const uint column = column0 + e / DEPTH;
            ws[e] = column < shape.n ? w[column * shape.k + k0 + e % DEPTH] : half(0);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        mm.run(tx, tw, acc);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    auto ty = tensor<device float, dextents<int, 2>, tensor_inline>(y, dextents<int, 2>(shape.n, shape.m));
    auto tile = ty.slice(column0, row0);
    acc.store(tile);
}

// The same with simdgroup matrices: each of the four simdgroups makes 16 rows by 32 columns of the tile.
kernel void simdgroup_matmul(device const float* x [[buffer(0)]], device const half* w [[buffer(1)]], device float* y [[buffer(2)]],
                             constant Shape& shape [[buffer(3)]], threadgroup half* shared [[threadgroup(0)]],
                             uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                             uint sg [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup half* xs = shared;
    threadgroup half* ws = shared + ROWS * DEPTH;
    const uint row0 = group.y * ROWS, column0 = group.x * COLUMNS;
    simdgroup_float8x8 acc[2][4];
    for (int r = 0; r < 2; r++) for (int c = 0; c < 4; c++) acc[r][c] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    const uint sub_row = sg / 2 * 16, sub_column = sg % 2 * 32;
    for (uint k0 = 0; k0 < shape.k; k0 += DEPTH) {
        for (uint e = t; e < uint(ROWS * DEPTH); e += 128) {
            const uint row = row0 + e / DEPTH;
            xs[e] = row < shape.m ? half(x[row * shape.k + k0 + e % DEPTH]) : half(0);
        }
        for (uint e = t; e < uint(COLUMNS * DEPTH); e += 128) {
            const uint column = column0 + e / DEPTH;
            ws[e] = column < shape.n ? w[column * shape.k + k0 + e % DEPTH] : half(0);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int k = 0; k < DEPTH; k += 8) {
            simdgroup_half8x8 a[2], b[4];
            for (int r = 0; r < 2; r++) simdgroup_load(a[r], xs + (sub_row + 8 * r) * DEPTH + k, DEPTH);
            for (int c = 0; c < 4; c++) simdgroup_load(b[c], ws + (sub_column + 8 * c) * DEPTH + k, DEPTH, ulong2(0, 0), true);
            for (int r = 0; r < 2; r++) for (int c = 0; c < 4; c++) simdgroup_multiply_accumulate(acc[r][c], a[r], b[c], acc[r][c]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    threadgroup float* out = (threadgroup float*)shared + sg * 64;
    for (int r = 0; r < 2; r++) for (int c = 0; c < 4; c++) {
        simdgroup_store(acc[r][c], out, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint e = lane; e < 64; e += 32) {
            const uint row = row0 + sub_row + 8 * r + e / 8, column = column0 + sub_column + 8 * c + e % 8;
            if (row < shape.m && column < shape.n) y[row * shape.n + column] = out[e];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Defects: accumulating into what was never set, and a store that takes no part of the threads along.
kernel void unset_accumulator(device const half* x [[buffer(0)]], device const half* w [[buffer(1)]], device float* y [[buffer(2)]]) {
    auto tx = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)x, dextents<int, 2>(16, 16));
    auto tw = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)w, dextents<int, 2>(16, 16));
    constexpr auto product = matmul2d_descriptor(16, 16, 16, false, false, false, matmul2d_descriptor::mode::multiply_accumulate);
    matmul2d<product, execution_simdgroup> mm;
    auto acc = mm.get_destination_cooperative_tensor<decltype(tx), decltype(tw), float>();
    mm.run(tx, tw, acc);
    auto ty = tensor<device float, dextents<int, 2>, tensor_inline>(y, dextents<int, 2>(16, 16));
    acc.store(ty);
}

kernel void part_of_scope(device const half* x [[buffer(0)]], device const half* w [[buffer(1)]], device float* y [[buffer(2)]],
                          uint lane [[thread_index_in_simdgroup]]) {
    auto tx = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)x, dextents<int, 2>(16, 16));
    auto tw = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)w, dextents<int, 2>(16, 16));
    auto ty = tensor<device float, dextents<int, 2>, tensor_inline>(y, dextents<int, 2>(16, 16));
    constexpr auto product = matmul2d_descriptor(16, 16, 16);
    matmul2d<product, execution_simdgroup> mm;
    if (lane < 31) mm.run(tx, tw, ty);
}

// Leans on one order of the elements of a cooperative tensor.
kernel void assumes_a_layout(device const half* x [[buffer(0)]], device const half* w [[buffer(1)]], device float* y [[buffer(2)]],
                             uint lane [[thread_index_in_simdgroup]]) {
    auto tx = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)x, dextents<int, 2>(16, 16));
    auto tw = tensor<device half, dextents<int, 2>, tensor_inline>((device half*)w, dextents<int, 2>(16, 16));
    constexpr auto product = matmul2d_descriptor(16, 16, 16);
    matmul2d<product, execution_simdgroup> mm;
    auto out = mm.get_destination_cooperative_tensor<decltype(tx), decltype(tw), float>();
    mm.run(tx, tw, out);
    for (int i = 0; i < 8; i++) y[i * 32 + lane] = out[i];
}
