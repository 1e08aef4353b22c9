
// A candidate: a value and its index; UINT_MAX is none. Larger values come first, of equal ones the smaller index.
struct Candidate {
    float value;
    uint index;
};
constant uint NONE = 0xffffffff;

inline Candidate better(Candidate a, Candidate b) {
    const bool take = b.index != NONE && (a.index == NONE || b.value > a.value || (b.value == a.value && b.index < a.index));
    return take ? b : a;
}

inline Candidate simd_better(Candidate best) {
    for (ushort step = 16; step > 0; step /= 2) {
        best = better(best, Candidate{simd_shuffle_xor(best.value, step), simd_shuffle_xor(best.index, step)});
    }
    return best;
}

// The best of a row over the threads of a threadgroup; every thread gets it. NaN wins only where there is nothing else, and gives NONE.
inline Candidate threadgroup_best(device const float* x, ulong dim, threadgroup float* values, threadgroup uint* indices,
                                  uint thread_index, uint threads, uint simdgroup, uint lane) {
    Candidate best{0.0f, NONE};
    for (ulong i = thread_index; i < dim; i += threads) {
        const float value = x[i];
        if (!isnan(value)) best = better(best, Candidate{value, uint(i)});
    }
    best = simd_better(best);
    if (lane == 0) {
        values[simdgroup] = best.value;
        indices[simdgroup] = best.index;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best = simd_better(lane < threads / 32 ? Candidate{values[lane], indices[lane]} : Candidate{0.0f, NONE});
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return best;
}

// The smallest index of the largest value of a row, a threadgroup a row; NaN wins only where there is nothing else.
[[kernel, max_total_threads_per_threadgroup(1024)]] void argmax(device const float* x [[buffer(0)]], device uint* y [[buffer(1)]], constant RowArgs& args [[buffer(2)]],
                       uint row [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                       uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float values[32];
    threadgroup uint indices[32];
    const Candidate best =
        threadgroup_best(x + ulong(row) * args.dim, args.dim, values, indices, thread_index, threads, simdgroup, lane);
    if (thread_index == 0) y[row] = best.index == NONE ? 0 : best.index;
}

// The top_k largest of softmax(logits[t]), a simdgroup a token. Each next expert is the best of those that come after the last one.
[[kernel]] void expert_gate(device const float* logits [[buffer(0)]], device uint* ids [[buffer(1)]],
                            device float* weights [[buffer(2)]], constant ExpertArgs& args [[buffer(3)]],
                            uint token [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device const float* row = logits + ulong(token) * args.n_experts;
    const ulong slot = ulong(token) * args.top_k;
    float largest = -INFINITY, sum = 0.0f;
    for (uint e = lane; e < args.n_experts; e += 32) largest = max(largest, row[e]);
    largest = simd_max(largest);
    for (uint e = lane; e < args.n_experts; e += 32) sum += precise::exp(row[e] - largest);
    sum = simd_sum(sum);
    Candidate last{0.0f, NONE};
    float chosen = 0.0f;
    for (uint s = 0; s < args.top_k; s++) {
        Candidate best{0.0f, NONE};
        for (uint e = lane; e < args.n_experts; e += 32) {
            // NaN comes last.
            const Candidate candidate{isnan(row[e]) ? -INFINITY : row[e], e};
            const bool is_left = last.index == NONE || candidate.value < last.value ||
                                 (candidate.value == last.value && e > last.index);
            if (is_left) best = better(best, candidate);
        }
        last = simd_better(best);
        const float probability = precise::exp(row[last.index] - largest) / sum;
        chosen += probability;
        if (lane == 0) {
            ids[slot + s] = last.index;
            weights[slot + s] = probability;
        }
    }
    if (args.normalize && lane == 0) {
        for (uint s = 0; s < args.top_k; s++) weights[slot + s] = weights[slot + s] / chosen;
    }
}

// y[t][j] = sum over s of weights[t][s] x[t top_k + s][j], a thread an element.
[[kernel]] void expert_sum(device const float* x [[buffer(0)]], device const float* weights [[buffer(1)]], device float* y [[buffer(2)]],
                           constant ExpertArgs& args [[buffer(3)]], uint group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]]) {
    const ulong i = ulong(group) * 256 + thread_index;
    if (i >= args.len) return;
    const ulong token = i / args.n, j = i % args.n;
    float sum = 0.0f;
    for (uint s = 0; s < args.top_k; s++) {
        const ulong slot = token * args.top_k + s;
        sum += weights[slot] * x[slot * args.n + j];
    }
    y[i] = sum;
}

