
// y = s / sqrt(mean(s^2) + eps) * weight for s = x (+ residual), a block a row. A thread reads again only what it read or wrote
// itself, so that y, and sum, may be x.
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
