
// The large tile: 64 weight rows by 128 input rows, 64 of k at a time, by eight simdgroups. Weights are decoded once for 128 rows, into
// 8 KiB; the input is read as float from device memory and needs no scale. k is a multiple of 8, m at least 8.
constexpr constant uint LARGE_M = 128;
constexpr constant uint LARGE_K = 64;

// Sixteen values for each of 256 threads, and the scale of each row of the step.
template <typename W>
inline void load_large(thread const W& weight, constant MatmulArgs& args, uint column0, uint k0, threadgroup half* ws,
                       threadgroup float* w_scales, uint thread_index) {
    const uint row = thread_index / 4, part = thread_index % 4;
    float w[16];
    if (column0 + row < args.n && k0 + 16 * part < args.k) {
        weight.chunk(column0 + row, k0 / 16 + part, args.k, w);
    } else {
        for (uint i = 0; i < 16; i++) w[i] = 0.0f;
    }
    float2 scale = float2(1.0f);
    if (!W::HALF) scale = block_scale(largest_of<16>(w, 4));
    if (part == 0) w_scales[row] = scale.y;
    for (uint i = 0; i < 16; i++) ws[row * LARGE_K + 16 * part + i] = half(w[i] * scale.x);
}

// output[b][i][j]; grid of column tiles, row tiles, batches. Each simdgroup makes 32 rows by 32 columns.
template <typename W>
[[kernel, max_total_threads_per_threadgroup(256)]] void mm_large(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                         device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                         constant MatmulArgs& args [[buffer(5)]], threadgroup uchar* shared [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    threadgroup half* ws = (threadgroup half*)shared;
    threadgroup float* w_scales = (threadgroup float*)(ws + TILE_N * LARGE_K);
    const uint column0 = group.x * TILE_N, row0 = group.y * LARGE_M + simdgroup / 2 * 32, sub_column = simdgroup % 2 * 32;
    device const float* input = (device const float*)(x + group.z * args.x_batch);
    const ulong stride = args.x_row / 4;
    // Eight rows at a time from here; where fewer are left, the last eight, of which those that have been made are made again.
    uint first_row[4];
    simdgroup_float8x8 sums[4][4];
    for (uint r = 0; r < 4; r++) {
        first_row[r] = min(row0 + 8 * r, args.m - 8);
        for (uint c = 0; c < 4; c++) sums[r][c] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    }
    threadgroup float* floats = (threadgroup float*)shared;
    const uint2 element_column = element_places(floats, thread_index) % 8;
    for (uint k0 = 0; k0 < args.k; k0 += LARGE_K) {
        load_large(weight, args, column0, k0, ws, w_scales, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_float8x8 step[4][4];
        for (uint r = 0; r < 4; r++) {
            for (uint c = 0; c < 4; c++) step[r][c] = make_filled_simdgroup_matrix<float, 8>(0.0f);
        }
        const uint depth = min(args.k - k0, LARGE_K);
        for (uint l = 0; l < depth; l += 8) {
            simdgroup_float8x8 a[4];
            simdgroup_half8x8 b[4];
            for (uint r = 0; r < 4; r++) simdgroup_load(a[r], input + first_row[r] * stride + k0 + l, stride);
            for (uint c = 0; c < 4; c++) {
                simdgroup_load(b[c], ws + (sub_column + 8 * c) * LARGE_K + l, LARGE_K, ulong2(0, 0), true);
            }
            for (uint r = 0; r < 4; r++) {
                for (uint c = 0; c < 4; c++) simdgroup_multiply_accumulate(step[r][c], a[r], b[c], step[r][c]);
            }
        }
        for (uint c = 0; c < 4; c++) {
            threadgroup const float* across = w_scales + sub_column + 8 * c;
            const float2 factor = float2(across[element_column.x], across[element_column.y]);
            for (uint r = 0; r < 4; r++) {
                for (uint i = 0; i < 2; i++) sums[r][c].thread_elements()[i] += step[r][c].thread_elements()[i] * factor[i];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Out eight rows at a time, each simdgroup through its own kilobyte.
    threadgroup float* out = floats + simdgroup * 256;
    const uint column = column0 + sub_column + lane;
    for (uint r = 0; r < 4; r++) {
        for (uint c = 0; c < 4; c++) simdgroup_store(sums[r][c], out + 8 * c, 32);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < 8; i++) {
            const uint row = first_row[r] + i;
            if (row >= row0 + 8 * r && column < args.n) {
                store_y(y, (ulong(group.z) * args.m + row) * args.n + column, out[32 * i + lane]);
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}
