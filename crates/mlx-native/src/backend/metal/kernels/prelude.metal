#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

// Before a loop over registers, which have no addresses.
#define UNROLL _Pragma("clang loop unroll(full)")

// Sum over a threadgroup of at most 32 whole simdgroups; every thread gets it. shared has room for 32 floats and may be used again at once.
inline float threadgroup_sum(float value, threadgroup float* shared, uint simdgroup, uint lane, uint simdgroups) {
    value = simd_sum(value);
    if (lane == 0) shared[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = simd_sum(lane < simdgroups ? shared[lane] : 0.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return value;
}

// The same for the largest value; a NaN may or may not show.
inline float threadgroup_max(float value, threadgroup float* shared, uint simdgroup, uint lane, uint simdgroups) {
    value = simd_max(value);
    if (lane == 0) shared[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = simd_max(lane < simdgroups ? shared[lane] : -INFINITY);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return value;
}

// A power of two that brings magnitudes up to `largest` below 2^9, and its inverse. Both are normal for every float.
inline float2 block_scale(float largest) {
    const uint exponent = clamp((as_type<uint>(largest) >> 23) & 255, 9u, 254u);
    return float2(as_type<float>((262 - exponent) << 23), as_type<float>((exponent - 8) << 23));
}

// Where in an 8x8 matrix, row by row, the two elements lie that a thread holds: a matrix of places tells. The first 64 floats of
// shared may be used again at once.
inline uint2 element_places(threadgroup float* shared, uint thread_index) {
    if (thread_index < 64) shared[thread_index] = float(thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 places;
    simdgroup_load(places, shared, 8);
    const uint2 held = uint2(uint(places.thread_elements()[0]), uint(places.thread_elements()[1]));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return held;
}

inline float silu(float a) { return a / (1.0f + precise::exp(-a)); }

inline float gelu_tanh(float a) {
    // sqrt(2 / pi)
    const float inner = 0.7978845608f * (a + 0.044715f * a * a * a);
    return 0.5f * a * (1.0f + precise::tanh(inner));
}
