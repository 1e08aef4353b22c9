// Pairs of kernels: NAME has one planted defect, NAME_fixed does the same work without it. All take x at buffer 0, y at
// buffer 1 and the number of elements n at buffer 2, and run 64 threads per threadgroup.
#include <metal_stdlib>
using namespace metal;

#define ARGS device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& n [[buffer(2)]], \
    uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]], uint g [[threadgroup_position_in_grid]], \
    uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]]

kernel void missing_barrier(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    y[i] = tile[63 - t];
}
kernel void missing_barrier_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[63 - t];
}

// The tile is used again before everyone has read it.
kernel void missing_second_barrier(ARGS) {
    threadgroup float tile[64];
    float sum = 0;
    for (int r = 0; r < 2; r++) {
        tile[t] = x[i] + r;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += tile[63 - t];
    }
    y[i] = sum;
}
kernel void missing_second_barrier_fixed(ARGS) {
    threadgroup float tile[64];
    float sum = 0;
    for (int r = 0; r < 2; r++) {
        tile[t] = x[i] + r;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += tile[63 - t];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    y[i] = sum;
}

// A barrier that orders device memory orders no threadgroup memory.
kernel void wrong_barrier_flags(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_device);
    y[i] = tile[63 - t];
}
kernel void wrong_barrier_flags_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
    y[i] = tile[63 - t];
}

// A simdgroup barrier is not enough when the other simdgroup reads.
kernel void barrier_of_one_simdgroup(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t ^ 32];
}
kernel void barrier_of_one_simdgroup_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t ^ 31];
}

kernel void overrun(ARGS) { y[i] = i <= n ? x[i + 1] : 0.0f; }
kernel void overrun_fixed(ARGS) { y[i] = i + 1 < n ? x[i + 1] : 0.0f; }

kernel void overrun_write(ARGS) { if (i <= n) y[i] = x[min(i, n - 1)]; }
kernel void overrun_write_fixed(ARGS) { if (i < n) y[i] = x[i]; }

kernel void underrun(ARGS) { y[i] = x[int(i) - 1]; }
kernel void underrun_fixed(ARGS) { y[i] = x[max(int(i) - 1, 0)]; }

kernel void tile_overrun(ARGS, threadgroup float* tile [[threadgroup(0)]]) {
    tile[t + 1] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t + 1];
}
kernel void tile_overrun_fixed(ARGS, threadgroup float* tile [[threadgroup(0)]]) {
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t];
}

kernel void array_overrun(ARGS) {
    float part[4] = {1, 2, 3, 4};
    y[i] = part[(t & 3) + (n > 3 ? 1 : 0)];
}
kernel void array_overrun_fixed(ARGS) {
    float part[4] = {1, 2, 3, 4};
    y[i] = part[t & 3];
}

kernel void uninitialised_tile(ARGS) {
    threadgroup float acc[64];
    acc[t] += x[i];
    y[i] = acc[t];
}
kernel void uninitialised_tile_fixed(ARGS) {
    threadgroup float acc[64];
    acc[t] = 0;
    acc[t] += x[i];
    y[i] = acc[t];
}

// The output is taken to be zero.
kernel void uninitialised_output(ARGS) { y[i] += x[i]; }
kernel void uninitialised_output_fixed(ARGS) { y[i] = x[i]; }

kernel void uninitialised_matrix(ARGS) {
    simdgroup_float8x8 a, b, acc;
    simdgroup_load(a, x, 8);
    simdgroup_load(b, x, 8);
    simdgroup_multiply_accumulate(acc, a, b, acc);
    if (sg == 0) simdgroup_store(acc, y + g * 64, 8);
}
kernel void uninitialised_matrix_fixed(ARGS) {
    simdgroup_float8x8 a, b, acc = simdgroup_float8x8(0.0f);
    simdgroup_load(a, x, 8);
    simdgroup_load(b, x, 8);
    simdgroup_multiply_accumulate(acc, a, b, acc);
    if (sg == 0) simdgroup_store(acc, y + g * 64, 8);
}

// Half of each threadgroup's part is left out.
kernel void wrong_grid(ARGS) { if (t < 32) y[g * 64 + t] = x[g * 64 + t]; }
kernel void wrong_grid_fixed(ARGS) { y[g * 64 + t] = x[g * 64 + t]; }

// Threadgroups overlap by one element.
kernel void overlapping_groups(ARGS) { if (i > 0) y[g * 63 + t] = x[i]; else y[n - 1] = y[n - 2] = 0; }
kernel void overlapping_groups_fixed(ARGS) { y[g * 64 + t] = x[i]; }

// A threadgroup reads what another one writes.
kernel void read_across_groups(ARGS) {
    y[i] = x[i];
    threadgroup_barrier(mem_flags::mem_device);
    if (y[(i + 64) % n] < -1e30f) y[i] = 0;
}
kernel void read_across_groups_fixed(ARGS) {
    y[i] = x[i];
    threadgroup_barrier(mem_flags::mem_device);
    if (y[i ^ 63] < -1e30f) return;
}

kernel void misaligned_vector(ARGS) { if (t < 15) *(device float4*)(y + g * 64 + 4 * t + 1) = float4(x[i]); }
kernel void misaligned_vector_fixed(ARGS) { if (t < 16) *(device float4*)(y + g * 64 + 4 * t) = float4(x[i]); }

kernel void misaligned_read(ARGS) {
    float4 v = *(device const float4*)(x + (i & 31) + 1);
    y[i] = v.x;
}
kernel void misaligned_read_fixed(ARGS) {
    float4 v = *(device const float4*)(x + (i & 28));
    y[i] = v.x;
}

kernel void divergent_barrier(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    if (t < 40) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t];
}
kernel void divergent_barrier_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t];
}

kernel void return_before_barrier(ARGS) {
    threadgroup float tile[64];
    y[i] = x[i];
    if (t == 63) return;
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t];
}
kernel void return_before_barrier_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t == 63) { y[i] = 0; return; }
    y[i] = tile[t];
}

kernel void write_to_input(ARGS) {
    y[i] = x[i];
    ((device float*)x)[i] = 0;
}
kernel void write_to_input_fixed(ARGS) { y[i] = x[i]; }

kernel void simdgroup_race(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    y[i] = tile[t ^ 1];
}
kernel void simdgroup_race_fixed(ARGS) {
    threadgroup float tile[64];
    tile[t] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[t ^ 1];
}

// Lane 0 overwrites what the others still read.
kernel void early_overwrite(ARGS) {
    threadgroup float part[2];
    float sum = 0;
    for (int r = 0; r < 2; r++) {
        if (lane == 0) part[sg] = x[i] + r;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        sum += part[sg];
    }
    y[i] = sum;
}
kernel void early_overwrite_fixed(ARGS) {
    threadgroup float part[2];
    float sum = 0;
    for (int r = 0; r < 2; r++) {
        if (lane == 0) part[sg] = x[i] + r;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        sum += part[sg];
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    y[i] = sum;
}

// Different values go to one place.
kernel void lost_update(ARGS) {
    y[i] = 0;
    threadgroup float last[1];
    last[0] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = last[0];
}
kernel void lost_update_fixed(ARGS) {
    threadgroup float last[1];
    if (t == 63) last[0] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = last[0];
}

kernel void plain_counter(ARGS, device uint* count [[buffer(3)]]) {
    y[i] = x[i];
    count[0] = count[0] + 1;
}
kernel void plain_counter_fixed(ARGS, device atomic_uint* count [[buffer(3)]]) {
    y[i] = x[i];
    atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);
}

kernel void divergent_matrix(ARGS) {
    simdgroup_float8x8 a;
    if (lane < 16) simdgroup_load(a, x, 8);
    y[i] = x[i];
}
kernel void divergent_matrix_fixed(ARGS) {
    simdgroup_float8x8 a;
    simdgroup_load(a, x, 8);
    y[i] = x[i];
}

// A shuffle whose source lanes have gone another way.
kernel void divergent_shuffle(ARGS) {
    float v = x[i];
    if (lane < 16) v = simd_shuffle_xor(v, 16);
    y[i] = v;
}
kernel void divergent_shuffle_fixed(ARGS) {
    float v = simd_shuffle_xor(x[i], 16);
    y[i] = lane < 16 ? v : x[i];
}

kernel void unbound(ARGS, device const float* bias [[buffer(3)]]) { y[i] = x[i] + bias[i & 3]; }
kernel void unbound_fixed(ARGS, device const float* bias [[buffer(3)]]) { y[i] = n == 0 ? bias[i] : x[i]; }

kernel void wild(ARGS) {
    device const float* p = x;
    if (n > 3) p = nullptr;
    y[i] = p[i];
}
kernel void wild_fixed(ARGS) { y[i] = x[i]; }

struct Wide { uint n; uint more[7]; };
kernel void short_arguments(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant Wide& args [[buffer(2)]],
                            uint i [[thread_position_in_grid]]) { y[i] = x[i] + float(args.more[6]); }
kernel void short_arguments_fixed(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& n [[buffer(2)]],
                                  uint i [[thread_position_in_grid]]) { y[i] = x[i]; }

kernel void long_shift(ARGS) { y[i] = float(n << (t + 1)); }
kernel void long_shift_fixed(ARGS) { y[i] = float(n << (t & 31)); }

kernel void overflow(ARGS) { y[i] = float(int(n) * 100000000); }
kernel void overflow_fixed(ARGS) { y[i] = float(long(n) * 100000000); }

kernel void division_by_zero(ARGS) { y[i] = float(n / t); }
kernel void division_by_zero_fixed(ARGS) { y[i] = float(n / (t + 1)); }

// 32 KiB of variables and 256 bytes of an argument.
kernel void too_much_threadgroup_memory(ARGS, threadgroup float* part [[threadgroup(0)]]) {
    threadgroup float tile[8192];
    tile[t] = part[t] = x[i];
    y[i] = tile[t];
}
kernel void too_much_threadgroup_memory_fixed(ARGS, threadgroup float* part [[threadgroup(0)]]) {
    threadgroup float tile[8128];
    tile[t] = part[t] = x[i];
    y[i] = tile[t];
}
