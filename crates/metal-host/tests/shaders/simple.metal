#include <metal_stdlib>
using namespace metal;

struct Args { uint n; float scale; };
constant bool negate [[function_constant(0)]];

kernel void scale(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  constant Args& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < args.n) y[i] = (negate ? -args.scale : args.scale) * x[i];
}

// y[row] = sum of a row of x, one simdgroup per row, four rows per threadgroup.
kernel void row_sums(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& k [[buffer(2)]],
                     constant uint& n [[buffer(3)]], uint group [[threadgroup_position_in_grid]],
                     uint sg [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint row = group * 4 + sg;
    if (row >= n) return;
    float sum = 0;
    for (uint i = lane; i < k; i += 32) sum += x[row * k + i];
    sum = simd_sum(sum);
    if (lane == 0) y[row] = sum;
}

// Reverses each threadgroup's part of x through threadgroup memory.
template <typename T, int N>
[[kernel]] void reverse(device T* x [[buffer(0)]], threadgroup T* tile [[threadgroup(0)]],
                        uint group [[threadgroup_position_in_grid]], uint i [[thread_index_in_threadgroup]]) {
    tile[i] = x[group * N + i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x[group * N + i] = tile[N - 1 - i];
}
template [[host_name("reverse_half_128")]] [[kernel]] void reverse<half, 128>(device half*, threadgroup half*, uint, uint);
template [[host_name("reverse_bf16_64")]] [[kernel]] decltype(reverse<bfloat, 64>) reverse<bfloat, 64>;

// c = a b for a of 16 x 8 k, b of 8 k x 16, one simdgroup per 8 x 8 tile; the tile goes out through threadgroup memory.
kernel void matmul8(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device float* c [[buffer(2)]],
                    constant uint& k [[buffer(3)]], uint2 group [[threadgroup_position_in_grid]],
                    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float tile[8][8];
    simdgroup_float8x8 acc = make_filled_simdgroup_matrix<float, 8>(0.0f);
    for (uint i = 0; i < k; i += 8) {
        simdgroup_half8x8 ma, mb;
        simdgroup_load(ma, a + group.y * 8 * k + i, k);
        simdgroup_load(mb, b + i * 16 + group.x * 8, 16);
        simdgroup_multiply_accumulate(acc, ma, mb, acc);
    }
    simdgroup_store(acc, &tile[0][0], 8);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = lane; e < 64; e += 32) c[(group.y * 8 + e / 8) * 16 + group.x * 8 + e % 8] = tile[e / 8][e % 8];
}

kernel void vectors(device const uchar4* q [[buffer(0)]], device float4* y [[buffer(1)]], device half2* h [[buffer(2)]],
                    device atomic_uint* count [[buffer(3)]], uint i [[thread_position_in_grid]]) {
    float4 v = float4(q[i]) * 0.5 + float4(1.0, float2(2.0h, 3.0), 4.0);
    v.xy = v.yx;
    v.zw *= 2.0f;
    y[i] = clamp(v, 0.0f, 200.0f);
    h[i] = half2(v.x, 0.1h + half(v.w));
    atomic_fetch_add_explicit(count, uint(dot(v, float4(1, 0, 0, 0)) > 3.0f), memory_order_relaxed);
}
