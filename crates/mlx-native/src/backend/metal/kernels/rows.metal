
// y = s / sqrt(mean(s^2) + eps) * weight for s = x (+ residual), a threadgroup a row. A thread reads again only what it
// read or wrote itself, so that y, and sum, may be x.
template <bool RESIDUAL>
[[kernel, max_total_threads_per_threadgroup(256)]] void rms_norm_rows(device const float* x [[buffer(0)]], device const float* weight [[buffer(1)]],
                              device float* y [[buffer(2)]], constant RowArgs& args [[buffer(3)]],
                              device const float* residual [[buffer(4)]], device float* sum [[buffer(5)]],
                              uint row [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                              uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[32];
    const ulong first = ulong(row) * args.dim;
    float squares = 0;
    for (ulong i = thread_index; i < args.dim; i += threads) {
        float s = x[first + i];
        if (RESIDUAL) {
            s += residual[first + i];
            sum[first + i] = s;
        }
        squares += s * s;
    }
    squares = threadgroup_sum(squares, shared, simdgroup, lane, threads / 32);
    const float factor = 1.0f / precise::sqrt(squares / float(args.dim) + args.eps);
    for (ulong i = thread_index; i < args.dim; i += threads) {
        const float s = RESIDUAL ? sum[first + i] : x[first + i];
        y[first + i] = s * factor * weight[i];
    }
}

// y = e^(scale x - max) / sum, a threadgroup a row; y may be x.
[[kernel, max_total_threads_per_threadgroup(256)]] void softmax(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant RowArgs& args [[buffer(2)]],
                        uint row [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                        uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[32];
    const ulong first = ulong(row) * args.dim;
    float largest = -INFINITY;
    for (ulong i = thread_index; i < args.dim; i += threads) largest = max(largest, args.scale * x[first + i]);
    largest = threadgroup_max(largest, shared, simdgroup, lane, threads / 32);
    float sum = 0;
    for (ulong i = thread_index; i < args.dim; i += threads) {
        const float e = precise::exp(args.scale * x[first + i] - largest);
        y[first + i] = e;
        sum += e;
    }
    sum = threadgroup_sum(sum, shared, simdgroup, lane, threads / 32);
    for (ulong i = thread_index; i < args.dim; i += threads) y[first + i] = y[first + i] / sum;
}

