#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

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

