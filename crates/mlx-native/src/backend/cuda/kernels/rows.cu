
// y = s / sqrt(mean(s^2) + eps) * weight with s = x (+ residual), a block a row. y, and sum, may be x: a thread writes only what it alone has read.
// The row lies in registers, QUADS float4 of a thread; all of them start at multiples of 16 bytes and dim is a multiple of 4.
template <bool RESIDUAL, uint QUADS>
__global__ void __launch_bounds__(1024)
    rms_norm_quads(const float* x, const float* weight, float* y, RowArgs args, const float* residual, float* sum) {
    begin();
    __shared__ float shared[32];
    const ulong first = ulong(blockIdx.x) * args.dim;
    float4 s[QUADS], w[QUADS];
    float squares = 0.0f;
#pragma unroll
    for (uint q = 0; q < QUADS; q++) {
        const uint i = 4 * (q * blockDim.x + threadIdx.x);
        s[q] = w[q] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= args.dim) continue;
        s[q] = *reinterpret_cast<const float4*>(x + first + i);
        w[q] = *reinterpret_cast<const float4*>(weight + i);
        if (RESIDUAL) {
            const float4 r = *reinterpret_cast<const float4*>(residual + first + i);
            s[q] = make_float4(s[q].x + r.x, s[q].y + r.y, s[q].z + r.z, s[q].w + r.w);
        }
    }
#pragma unroll
    for (uint q = 0; q < QUADS; q++) {
        squares = fmaf(s[q].x, s[q].x, squares);
        squares = fmaf(s[q].y, s[q].y, squares);
        squares = fmaf(s[q].z, s[q].z, squares);
        squares = fmaf(s[q].w, s[q].w, squares);
    }
    squares = block_sum(squares, shared);
    const float factor = 1.0f / sqrtf(squares / float(args.dim) + args.eps);
#pragma unroll
    for (uint q = 0; q < QUADS; q++) {
        const uint i = 4 * (q * blockDim.x + threadIdx.x);
        if (i >= args.dim) continue;
        if (RESIDUAL) *reinterpret_cast<float4*>(sum + first + i) = s[q];
        *reinterpret_cast<float4*>(y + first + i) =
            make_float4(s[q].x * factor * w[q].x, s[q].y * factor * w[q].y, s[q].z * factor * w[q].z, s[q].w * factor * w[q].w);
    }
}

// The same for rows that do not: a thread reads again what it read or wrote itself.
template <bool RESIDUAL>
__global__ void __launch_bounds__(1024)
    rms_norm_rows(const float* x, const float* weight, float* y, RowArgs args, const float* residual, float* sum) {
    begin();
    __shared__ float shared[32];
    const ulong first = ulong(blockIdx.x) * args.dim;
    float squares = 0.0f;
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) {
        float s = x[first + i];
        if (RESIDUAL) {
            s += residual[first + i];
            sum[first + i] = s;
        }
        squares = fmaf(s, s, squares);
    }
    squares = block_sum(squares, shared);
    const float factor = 1.0f / sqrtf(squares / float(args.dim) + args.eps);
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) {
        const float s = RESIDUAL ? sum[first + i] : x[first + i];
        y[first + i] = s * factor * weight[i];
    }
}

// y = e^(scale x - max) / sum, a block a row; y may be x.
template <int = 0>
__global__ void __launch_bounds__(1024) softmax(const float* x, float* y, RowArgs args) {
    begin();
    __shared__ float shared[32];
    const ulong first = ulong(blockIdx.x) * args.dim;
    float largest = -infinity();
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) largest = fmaxf(largest, args.scale * x[first + i]);
    largest = block_max(largest, shared);
    float sum = 0.0f;
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) {
        const float e = expf(args.scale * x[first + i] - largest);
        y[first + i] = e;
        sum += e;
    }
    sum = block_sum(sum, shared);
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) y[first + i] = y[first + i] / sum;
}
