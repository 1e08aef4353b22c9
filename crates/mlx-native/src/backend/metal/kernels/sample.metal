
// One token from logits. Tokens stand by falling logit, of equal ones by rising index: their ranks are 64-bit numbers, a larger one for
// a token that comes earlier. A token's weight e^((logit - max) / temperature) is a whole number of 2^-(3 bits), so that sums are exact
// whatever the order of their terms, and the same on every run. Tokens are cut off by their weights at temperature 1.

inline ulong rank_of(float logit, uint index) {
    // Adding 0 makes -0 and 0 equal. Of negative floats the bits fall as the value rises.
    const uint bits = as_type<uint>(logit + 0.0f);
    return (ulong(bits >> 31 ? ~bits : bits | 0x80000000u) << 32) | ulong(~index);
}

// What a sum counts: tokens, or their weights.
struct Measure {
    float largest, temperature, one;
    bool by_weight;

    float weight(float logit) const { return precise::exp((logit - largest) / temperature); }
    ulong of(float logit) const { return by_weight ? ulong(weight(logit) * one) : 1; }
};

// Memory of a threadgroup that samples.
struct SampleShared {
    // Tokens of a digit, and three parts of their sum.
    atomic_uint bins[4][256];
    ulong groups[32];
    ulong below;
    ulong chosen;
    uint count;
};

inline void add_parts(threadgroup SampleShared& shared, uint bin, ulong value, uint bits) {
    const uint mask = (1u << bits) - 1;
    atomic_fetch_add_explicit(&shared.bins[1][bin], uint(value) & mask, memory_order_relaxed);
    atomic_fetch_add_explicit(&shared.bins[2][bin], uint(value >> bits) & mask, memory_order_relaxed);
    atomic_fetch_add_explicit(&shared.bins[3][bin], uint(value >> (2 * bits)), memory_order_relaxed);
}

inline ulong bin_sum(threadgroup SampleShared& shared, uint bin, uint bits) {
    ulong sum = atomic_load_explicit(&shared.bins[3][bin], memory_order_relaxed);
    sum = (sum << bits) + atomic_load_explicit(&shared.bins[2][bin], memory_order_relaxed);
    return (sum << bits) + atomic_load_explicit(&shared.bins[1][bin], memory_order_relaxed);
}

inline void clear_bins(threadgroup SampleShared& shared, uint thread_index, uint threads) {
    for (uint i = thread_index; i < 1024; i += threads) {
        atomic_store_explicit(&shared.bins[i / 256][i % 256], 0u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Rank of the first token at which the running sum of the measure exceeds `limit`: digit by digit from the highest, by the sums of the
// tokens of each digit, until one token is left.
inline ulong first_beyond(device const float* x, constant SampleArgs& args, Measure measure, ulong limit,
                          threadgroup SampleShared& shared, uint thread_index, uint threads) {
    ulong prefix = 0, below = 0;
    for (uint digits = 0; digits < 8; digits++) {
        clear_bins(shared, thread_index, threads);
        for (uint i = thread_index; i < args.dim; i += threads) {
            const float logit = x[i];
            const ulong rank = rank_of(logit, i);
            if (digits > 0 && rank >> (64 - 8 * digits) != prefix) continue;
            const uint bin = uint(rank >> (56 - 8 * digits)) & 255;
            atomic_fetch_add_explicit(&shared.bins[0][bin], 1u, memory_order_relaxed);
            add_parts(shared, bin, measure.of(logit), args.bits);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Eights of digits, then the digits of the eight in which the limit is passed.
        if (thread_index < 32) {
            ulong sum = 0;
            for (uint i = 0; i < 8; i++) sum += bin_sum(shared, 8 * thread_index + i, args.bits);
            shared.groups[thread_index] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (thread_index == 0) {
            int eight = 31;
            while (eight > 0 && below + shared.groups[eight] <= limit) below += shared.groups[eight--];
            uint bin = 8 * eight + 7;
            for (; bin > uint(8 * eight); bin--) {
                const ulong sum = bin_sum(shared, bin, args.bits);
                if (below + sum > limit) break;
                below += sum;
            }
            shared.chosen = bin;
            shared.below = below;
            shared.count = atomic_load_explicit(&shared.bins[0][bin], memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix = (prefix << 8) | shared.chosen;
        below = shared.below;
        const uint count = shared.count;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (digits == 7) return prefix;
        if (count == 1) {
            for (uint i = thread_index; i < args.dim; i += threads) {
                const ulong rank = rank_of(x[i], i);
                if (rank >> (56 - 8 * digits) == prefix) shared.chosen = rank;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const ulong rank = shared.chosen;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            return rank;
        }
    }
    return prefix;
}

// Sum of the measure of the tokens up to the one of rank `last` whose `cut` is not below `least`.
inline ulong sum_until(device const float* x, constant SampleArgs& args, Measure measure, ulong last, Measure cut, float least,
                       threadgroup SampleShared& shared, uint thread_index, uint threads) {
    clear_bins(shared, thread_index, threads);
    for (uint i = thread_index; i < args.dim; i += threads) {
        const float logit = x[i];
        if (rank_of(logit, i) >= last && cut.weight(logit) >= least) add_parts(shared, 0, measure.of(logit), args.bits);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const ulong sum = bin_sum(shared, 0, args.bits);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return sum;
}

// Copies the logits, for penalties.
[[kernel]] void copy_logits(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant SampleArgs& args [[buffer(2)]],
                            uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    const uint i = group * 256 + thread_index;
    if (i < args.dim) y[i] = x[i];
}

// Divides positive logits of the tokens in the history by the penalty and multiplies others; a token that occurs twice gets the same value
// twice.
[[kernel]] void penalise(device const float* x [[buffer(0)]], device atomic_uint* y [[buffer(1)]], constant SampleArgs& args [[buffer(2)]],
                         device const uint* history [[buffer(3)]], uint group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
    const uint i = group * 256 + thread_index;
    if (i >= args.history) return;
    const uint id = history[i];
    if (id >= args.dim) return;
    const float logit = x[id];
    atomic_store_explicit(&y[id], as_type<uint>(logit > 0.0f ? logit / args.penalty : logit * args.penalty), memory_order_relaxed);
}

// One threadgroup.
[[kernel, max_total_threads_per_threadgroup(1024)]] void sample(device const float* x [[buffer(0)]], device uint* y [[buffer(1)]], constant SampleArgs& args [[buffer(2)]],
                       device atomic_uint* fault [[buffer(3)]], uint thread_index [[thread_index_in_threadgroup]],
                       uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup SampleShared shared;
    threadgroup float values[32];
    threadgroup uint indices[32];
    for (uint i = thread_index; i < args.dim; i += threads) {
        if (isnan(x[i])) atomic_fetch_min_explicit(fault, i, memory_order_relaxed);
    }
    const Candidate best = threadgroup_best(x, args.dim, values, indices, thread_index, threads, simdgroup, lane);
    if (args.greedy || best.index == NONE || isinf(best.value)) {
        if (thread_index == 0) y[0] = best.index == NONE ? 0 : best.index;
        return;
    }
    const Measure tokens{best.value, 1.0f, args.one, false}, cut{best.value, 1.0f, args.one, true};
    const Measure weights{best.value, args.temperature, args.one, true};
    ulong last = 0;
    if (args.top_k > 0 && args.top_k < args.dim) {
        last = first_beyond(x, args, tokens, args.top_k - 1, shared, thread_index, threads);
    }
    if (args.has_top_p) {
        // The first token at which the sum is no less than top_p of all, top_p in units of 2^-32.
        const ulong total = sum_until(x, args, cut, last, cut, 0.0f, shared, thread_index, threads);
        const ulong low = (total & 0xffffffff) * args.top_p;
        const ulong enough = (total >> 32) * args.top_p + (low >> 32) + ((low & 0xffffffff) > 0 ? 1 : 0);
        last = max(last, first_beyond(x, args, cut, enough - 1, shared, thread_index, threads));
    }
    const ulong sum = sum_until(x, args, weights, last, cut, args.min_p, shared, thread_index, threads);
    // u = draw / 2^24
    const ulong target = (sum >> 24) * args.draw + (((sum & 0xffffff) * args.draw) >> 24);
    const ulong token = first_beyond(x, args, weights, target, shared, thread_index, threads);
    if (thread_index == 0) y[0] = ~uint(token);
}
