
// A candidate: a value and its index; NONE is none. Larger values come first, of equal ones the smaller index.
static constexpr uint NONE = 0xffffffffu;
struct Candidate {
    float value;
    uint index;
};

inline Candidate better(Candidate a, Candidate b) {
    const bool take = b.index != NONE && (a.index == NONE || b.value > a.value || (b.value == a.value && b.index < a.index));
    return take ? b : a;
}

inline Candidate warp_better(Candidate best) {
    for (int step = 16; step > 0; step /= 2) {
        best = better(best, Candidate{__shfl_xor_sync(FULL, best.value, step), __shfl_xor_sync(FULL, best.index, step)});
    }
    return best;
}

// The best of a block of whole warps, for all its threads.
inline Candidate block_better(Candidate best) {
    __shared__ Candidate shared[32];
    best = warp_better(best);
    if (lane_index() == 0) shared[warp_index()] = best;
    __syncthreads();
    best = warp_better(lane_index() < blockDim.x / 32 ? shared[lane_index()] : Candidate{0.0f, NONE});
    __syncthreads();
    return best;
}

// The smallest index of the largest value of a row, a block a row; NaN wins only where there is nothing else.
template <int = 0>
__global__ void __launch_bounds__(1024) argmax(const float* x, uint* y, RowArgs args) {
    begin();
    const ulong first = ulong(blockIdx.x) * args.dim;
    Candidate best{0.0f, NONE};
    for (ulong i = threadIdx.x; i < args.dim; i += blockDim.x) {
        const float value = x[first + i];
        if (!isnan(value)) best = better(best, Candidate{value, uint(i)});
    }
    best = block_better(best);
    if (threadIdx.x == 0) y[blockIdx.x] = best.index == NONE ? 0 : best.index;
}

// The top_k largest of softmax(logits[t]), a warp a token. Each next expert is the best of those that come after the last one.
template <int = 0>
__global__ void __launch_bounds__(32) expert_gate(const float* logits, uint* ids, float* weights, ExpertArgs args) {
    begin();
    const uint lane = lane_index();
    const float* row = logits + ulong(blockIdx.x) * args.n_experts;
    const ulong slot = ulong(blockIdx.x) * args.top_k;
    float largest = -infinity(), sum = 0.0f;
    for (uint e = lane; e < args.n_experts; e += 32) largest = fmaxf(largest, row[e]);
    largest = warp_max(largest);
    for (uint e = lane; e < args.n_experts; e += 32) sum += expf(row[e] - largest);
    sum = warp_sum(sum);
    Candidate last{0.0f, NONE};
    float chosen = 0.0f;
    for (uint s = 0; s < args.top_k; s++) {
        Candidate best{0.0f, NONE};
        for (uint e = lane; e < args.n_experts; e += 32) {
            // NaN comes last.
            const Candidate candidate{isnan(row[e]) ? -infinity() : row[e], e};
            const bool is_left = last.index == NONE || candidate.value < last.value ||
                                 (candidate.value == last.value && e > last.index);
            if (is_left) best = better(best, candidate);
        }
        last = warp_better(best);
        const float probability = expf(row[last.index] - largest) / sum;
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
template <int = 0>
__global__ void __launch_bounds__(256) expert_sum(const float* x, const float* weights, float* y, ExpertArgs args) {
    begin();
    const ulong i = ulong(blockIdx.x) * 256 + threadIdx.x;
    if (i >= args.len) return;
    const ulong token = i / args.n, j = i % args.n;
    float sum = 0.0f;
    for (uint s = 0; s < args.top_k; s++) {
        const ulong slot = token * args.top_k + s;
        sum = fmaf(weights[slot], x[slot * args.n + j], sum);
    }
    y[i] = sum;
}
