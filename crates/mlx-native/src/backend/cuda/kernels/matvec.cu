
// Few input rows: float activations, every weight decoded once for all rows of a pass.
//
// A warp has C weight rows (columns of the result); args.warps_per_row warps of a block share them, each with a part of k. A lane takes every
// chunk of sixteen values that is its own, so that neighbours read neighbouring bytes. What a row of the result sums, and in which order,
// depends on n and k alone, not on R. Weight bytes per chunk: those of sixteen values times C, in flight at once.
static constexpr uint WARPS = 4;

// Sixteen values of row i of a batch from l on. Rows start at multiples of 16 bytes and are whole chunks.
inline void x_values(const uchar* x, ulong batch, ulong i, uint l, const ProductArgs& args, float* v) {
    const float4* four = reinterpret_cast<const float4*>(x + batch * args.x_batch + i * args.x_row) + l / 4;
#pragma unroll
    for (uint w = 0; w < 4; w++) {
        const float4 values = four[w];
        v[4 * w] = values.x;
        v[4 * w + 1] = values.y;
        v[4 * w + 2] = values.z;
        v[4 * w + 3] = values.w;
    }
}

template <typename W, uint R, uint C>
inline void mat_vec(const W& weight, const uchar* x, uchar* y, const ProductArgs& args, ulong batch, uint x_row, uint rows, ulong y_row) {
    __shared__ float partial[WARPS][C * R];
    const uint lane = lane_index(), warp = warp_index();
    const uint split = args.warps_per_row, part = warp % split;
    const uint first = (blockIdx.x * (WARPS / split) + warp / split) * C;
    float sums[C][R];
#pragma unroll
    for (uint j = 0; j < C; j++) {
#pragma unroll
        for (uint r = 0; r < R; r++) sums[j][r] = 0.0f;
    }
    const uint chunks = DIVIDE_UP(args.k, 16);
    // Input rows held at once: more would not fit the registers.
    constexpr uint HELD = R < 4 ? R : 4;
    for (uint c = part * 32 + lane; c < chunks; c += 32 * split) {
        if constexpr (R <= HELD) {
            float v[HELD][16];
#pragma unroll
            for (uint r = 0; r < R; r++) x_values(x, batch, x_row + min(r, rows - 1), 16 * c, args, v[r]);
            float totals[R];
            if constexpr (W::OFFSET) {
#pragma unroll
                for (uint r = 0; r < R; r++) {
                    totals[r] = 0.0f;
#pragma unroll
                    for (uint i = 0; i < 16; i++) totals[r] += v[r][i];
                }
            }
#pragma unroll
            for (uint j = 0; j < C; j++) {
                float q[16], scale, offset;
                weight.chunk(min(first + j, args.n - 1), c, args.k, q, scale, offset);
#pragma unroll
                for (uint r = 0; r < R; r++) {
                    float sum = 0.0f;
#pragma unroll
                    for (uint i = 0; i < 16; i++) sum = fmaf(q[i], v[r][i], sum);
                    sums[j][r] = fmaf(scale, sum, sums[j][r]);
                    if constexpr (W::OFFSET) sums[j][r] = fmaf(offset, totals[r], sums[j][r]);
                }
            }
        } else {
            float q[C][16], scale[C], offset[C];
#pragma unroll
            for (uint j = 0; j < C; j++) weight.chunk(min(first + j, args.n - 1), c, args.k, q[j], scale[j], offset[j]);
#pragma unroll
            for (uint r = 0; r < R; r++) {
                float v[16], total = 0.0f;
                x_values(x, batch, x_row + min(r, rows - 1), 16 * c, args, v);
                if constexpr (W::OFFSET) {
#pragma unroll
                    for (uint i = 0; i < 16; i++) total += v[i];
                }
#pragma unroll
                for (uint j = 0; j < C; j++) {
                    float sum = 0.0f;
#pragma unroll
                    for (uint i = 0; i < 16; i++) sum = fmaf(q[j][i], v[i], sum);
                    sums[j][r] = fmaf(scale[j], sum, sums[j][r]);
                    if constexpr (W::OFFSET) sums[j][r] = fmaf(offset[j], total, sums[j][r]);
                }
            }
        }
    }
#pragma unroll
    for (uint j = 0; j < C; j++) {
#pragma unroll
        for (uint r = 0; r < R; r++) {
            const float sum = warp_sum(sums[j][r]);
            if (lane == 0) partial[warp][j * R + r] = sum;
        }
    }
    __syncthreads();
    if (part != 0) return;
    for (uint e = lane; e < C * R; e += 32) {
        const uint column = first + e / R, r = e % R;
        float sum = partial[warp][e];
        for (uint s = 1; s < split; s++) sum += partial[warp + s][e];
        if (column < args.n && r < rows) store_y(y, (y_row + r) * args.n + column, sum, args);
    }
}

// output[b][i][j]; grid of columns, passes of R rows, batches.
template <typename W, uint R, uint C>
__global__ void __launch_bounds__(32 * WARPS)
    mv(const uchar* data, const uchar* scales, const uchar* biases, const uchar* x, uchar* y, ProductArgs args) {
    begin();
    const W weight(data, scales, biases, args, blockIdx.z / args.batch_ratio);
    const uint row = blockIdx.y * R;
    mat_vec<W, R, C>(weight, x, y, args, blockIdx.z, row, min(args.m - row, R), ulong(blockIdx.z) * args.m + row);
}

// The same for one slot of a token, whose expert chooses the matrix; grid of columns, slots. An id that is no expert gives NaN.
template <typename W, uint C>
__global__ void __launch_bounds__(32 * WARPS) mv_id(const uchar* data, const uchar* scales, const uchar* biases, const uchar* x, uchar* y,
                                                    ProductArgs args, const uint* ids, ulong* fault) {
    begin();
    const uint slot = blockIdx.y, expert = ids[slot];
    if (expert >= args.n_experts) {
        const uint columns = WARPS / args.warps_per_row * C, first = blockIdx.x * columns;
        for (uint j = first + threadIdx.x; j < min(first + columns, args.n); j += 32 * WARPS) {
            store_y(y, ulong(slot) * args.n + j, not_a_number(), args);
        }
        if (threadIdx.x == 0) report(fault, slot, expert);
        return;
    }
    const W weight(data, scales, biases, args, expert);
    mat_vec<W, 1, C>(weight, x, y, args, 0, slot / args.top_k, 1, slot);
}

// output[t] = scale * weight[ids[t]], a thread for sixteen values; grid of chunks, ids.
template <typename W>
__global__ void __launch_bounds__(64) embedding(const uchar* data, const uchar* scales, const uchar* biases, const uint* ids, float* y,
                                                ProductArgs args, ulong* fault) {
    begin();
    const uint c = blockIdx.x * 64 + threadIdx.x, token = blockIdx.y;
    if (c >= DIVIDE_UP(args.k, 16)) return;
    float* out = y + ulong(token) * args.k + 16 * c;
    const uint count = min(args.k - 16 * c, 16u), id = ids[token];
    if (id >= args.n) {
        for (uint i = 0; i < count; i++) out[i] = not_a_number();
        if (c == 0) report(fault, token, id);
        return;
    }
    const W weight(data, scales, biases, args, 0);
    float q[16], scale, offset;
    weight.chunk(id, c, args.k, q, scale, offset);
#pragma unroll
    for (uint i = 0; i < 16; i++) {
        if (i < count) out[i] = args.scale * fmaf(scale, q[i], offset);
    }
}

// output[b][i][j] = sum over l of x[b][i][l] weight[l][j], for the formats whose rows may run along n: a warp makes sixteen columns
// of a row; grid of chunks of n, rows, batches.
template <typename W>
__global__ void __launch_bounds__(32)
    vm(const uchar* data, const uchar* scales, const uchar* biases, const uchar* x, uchar* y, ProductArgs args) {
    begin();
    const W weight(data, scales, biases, args, blockIdx.z / args.batch_ratio);
    const uint lane = lane_index();
    float sums[16];
#pragma unroll
    for (uint i = 0; i < 16; i++) sums[i] = 0.0f;
    for (uint c = lane; c < DIVIDE_UP(args.k, 16); c += 32) {
        float v[16];
        x_values(x, blockIdx.z, blockIdx.y, 16 * c, args, v);
#pragma unroll 1
        for (uint l = 0; l < min(args.k - 16 * c, 16u); l++) {
            // A register array has no run-time index.
            float value = v[0];
#pragma unroll
            for (uint i = 1; i < 16; i++) value = i == l ? v[i] : value;
            float q[16], scale, offset;
            weight.chunk(16 * c + l, blockIdx.x, args.n, q, scale, offset);
#pragma unroll
            for (uint i = 0; i < 16; i++) sums[i] = fmaf(value, fmaf(scale, q[i], offset), sums[i]);
        }
    }
    const ulong row = ulong(blockIdx.z) * args.m + blockIdx.y;
#pragma unroll
    for (uint i = 0; i < 16; i++) {
        const float sum = warp_sum(sums[i]);
        if (lane == i && 16 * blockIdx.x + i < args.n) store_y(y, row * args.n + 16 * blockIdx.x + i, sum, args);
    }
}
