
// One draw, see SampleParams. Weights are e^((logit - max) / temperature) in units of 2^-40, so that their sums are exact and the same
// whatever order they are added in. Tokens are cut off by their weights at temperature 1.
static constexpr uint CHUNK = 2048;
static constexpr uint CHUNK_THREADS = 1024;

// The order of a ranking as a number: larger for a larger logit, among equals for a smaller index.
inline ulong rank_key(uint index, float value) {
    // Adding 0 makes -0 and 0 equal. Of negative floats the bits fall as the value rises.
    const uint bits = __float_as_uint(value + 0.0f);
    const uint ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return ulong(ordered) << 32 | ulong(~index);
}
inline float key_value(ulong key) {
    const uint ordered = uint(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
inline uint key_index(ulong key) { return ~uint(key); }

// Copies the logits and clears the marks, a bit for each.
template <int = 0>
__global__ void __launch_bounds__(256) sample_copy(const float* logits, float* copy, uint* marks, uint dim) {
    begin();
    const uint i = blockIdx.x * 256 + threadIdx.x;
    if (i < dim) copy[i] = logits[i];
    if (i < DIVIDE_UP(dim, 32)) marks[i] = 0;
}

// Penalises each token of the history once.
template <int = 0>
__global__ void __launch_bounds__(256) sample_penalise(float* copy, uint* marks, const uint* history, SampleArgs args,
                                                       const SampleLive* live) {
    begin();
    const uint i = blockIdx.x * 256 + threadIdx.x;
    if (i >= live->history_len) return;
    const uint id = history[i];
    if (id >= args.dim || (atomicOr(marks + id / 32, 1u << (id % 32)) >> (id % 32)) & 1) return;
    const float logit = copy[id];
    copy[id] = logit > 0.0f ? logit / args.penalty : logit * args.penalty;
}

// The best of some logits, and the first that is NaN.
struct Front {
    ulong winner;
    ulong first_nan;
};

inline Front front_of(Front a, Front b) { return Front{max(a.winner, b.winner), min(a.first_nan, b.first_nan)}; }

// The front of a block of FRONT_THREADS threads, for its first warp.
static constexpr uint FRONT_THREADS = 256;
inline Front block_front(Front front) {
    __shared__ Front shared[FRONT_THREADS / 32];
    for (uint round = 0; round < 2; round++) {
        for (int step = 16; step > 0; step /= 2) {
            front = front_of(front, Front{__shfl_xor_sync(FULL, front.winner, step), __shfl_xor_sync(FULL, front.first_nan, step)});
        }
        if (round == 1) break;
        if (lane_index() == 0) shared[warp_index()] = front;
        __syncthreads();
        front = shared[lane_index() % (FRONT_THREADS / 32)];
    }
    return front;
}

// The front of each part of the logits, a block a part.
static constexpr uint PART = 4096;
template <int = 0>
__global__ void __launch_bounds__(FRONT_THREADS) sample_fronts(const float* logits, Front* fronts, uint dim) {
    begin();
    const uint first = blockIdx.x * PART, count = min(PART, dim - first);
    Front front{0, ~0ull};
#pragma unroll
    for (uint step = 0; step < PART / FRONT_THREADS; step++) {
        const uint i = step * FRONT_THREADS + threadIdx.x;
        if (i >= count) continue;
        const float value = logits[first + i];
        const bool nan = isnan(value);
        front = front_of(front, Front{nan ? 0 : rank_key(first + i, value), nan ? first + i : ~0ull});
    }
    front = block_front(front);
    if (threadIdx.x == 0) fronts[blockIdx.x] = front;
}

// Finds the best, or a NaN, which is a fault. What is decided without a draw is decided here: best[1] says so. One block.
template <int = 0>
__global__ void __launch_bounds__(FRONT_THREADS)
    sample_best(const Front* fronts, uint* best, uint* y, SampleArgs args, ulong* fault) {
    begin();
    Front front{0, ~0ull};
    for (uint i = threadIdx.x; i < DIVIDE_UP(args.dim, PART); i += FRONT_THREADS) front = front_of(front, fronts[i]);
    front = block_front(front);
    if (threadIdx.x != 0) return;
    const bool failed = front.first_nan != ~0ull;
    const uint index = failed ? 0 : key_index(front.winner), first_nan = uint(front.first_nan);
    const float value = failed ? 0.0f : key_value(front.winner);
    best[0] = __float_as_uint(value);
    best[1] = failed || args.temperature == 0.0f || isinf(value);
    if (best[1]) y[0] = index;
    if (failed) report(fault, first_nan, first_nan);
}

inline double power_of(ulong key, float largest, float temperature) {
    return exp((double(key_value(key)) - double(largest)) / double(temperature));
}
// In units of 2^-40; of no token nothing.
inline ulong weight_of(ulong key, float largest, float temperature) {
    return key == 0 ? 0 : ulong(power_of(key, largest, temperature) * 1099511627776.0);
}

// sums[j]: of token j of a sorted chunk and all before it, the weights at a temperature. A thread has the two tokens from 2 * threadIdx.x on; `shared` is
// free when all threads are here.
inline void sum_weights(const ulong (&keys)[2], float largest, float temperature, ulong* shared, ulong* sums) {
    const uint thread = threadIdx.x;
    ulong weights[2];
    for (uint i = 0; i < 2; i++) weights[i] = weight_of(keys[i], largest, temperature);
    __syncthreads();
    // Sums of all threads up to this one.
    shared[thread] = weights[0] + weights[1];
    for (uint step = 1; step < CHUNK_THREADS; step *= 2) {
        __syncthreads();
        const ulong before = thread >= step ? shared[thread - step] : 0;
        __syncthreads();
        shared[thread] += before;
    }
    const ulong total = shared[thread];
    sums[2 * thread] = total - weights[1];
    sums[2 * thread + 1] = total;
}

// Sorts a chunk of the logits by falling rank and adds up their weights: keys[j] and, of it and all before it in the chunk, sums[j]; cuts[j] at temperature 1,
// where that is memory of its own. Beyond the last logit: key 0, no weight.
template <int = 0>
__global__ void __launch_bounds__(CHUNK_THREADS)
    sample_sort(const float* copy, const uint* best, ulong* keys, ulong* sums, ulong* cuts, SampleArgs args) {
    begin();
    __shared__ ulong sorted[CHUNK];
    if (best[1]) return;
    const uint first = blockIdx.x * CHUNK, thread = threadIdx.x;
    for (uint j = thread; j < CHUNK; j += CHUNK_THREADS) {
        sorted[j] = first + j < args.dim ? rank_key(first + j, copy[first + j]) : 0;
    }
    // Bitonic: runs of `run` keys, alternately falling and rising, are merged to runs of twice the length.
    for (uint run = 2; run <= CHUNK; run *= 2) {
        for (uint step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            const uint a = 2 * thread - (thread & (step - 1)), b = a + step;
            const bool falling = (a & run) == 0;
            const ulong x = sorted[a], z = sorted[b];
            if ((x < z) == falling) {
                sorted[a] = z;
                sorted[b] = x;
            }
        }
    }
    __syncthreads();
    const float largest = __uint_as_float(best[0]);
    const ulong keys_of[2] = {sorted[2 * thread], sorted[2 * thread + 1]};
    for (uint i = 0; i < 2; i++) keys[first + 2 * thread + i] = keys_of[i];
    sum_weights(keys_of, largest, args.temperature, sorted, sums + first);
    if (cuts == sums) return;
    __syncthreads();
    sum_weights(keys_of, largest, 1.0f, sorted, cuts + first);
}

// What the ranking holds down to a key: tokens and their weights.
struct Prefix {
    ulong count, weight;
};

// The prefix of all keys that are at least `key`, for a block of 32 warps: warp w answers for its own key. chunks is what sample_sort made, of each of which
// the first `most` count.
inline Prefix prefix_of(const ulong* keys, const ulong* sums, uint chunks, ulong key, uint most = CHUNK) {
    Prefix prefix{0, 0};
    for (uint chunk = lane_index(); chunk < chunks; chunk += 32) {
        const ulong* sorted = keys + ulong(chunk) * CHUNK;
        uint below = 0, above = most;
        while (below < above) {
            const uint middle = (below + above) / 2;
            if (sorted[middle] >= key) below = middle + 1;
            else above = middle;
        }
        prefix.count += below;
        prefix.weight += below == 0 ? 0 : sums[ulong(chunk) * CHUNK + below - 1];
    }
    for (int step = 16; step > 0; step /= 2) {
        prefix.count += __shfl_xor_sync(FULL, prefix.count, step);
        prefix.weight += __shfl_xor_sync(FULL, prefix.weight, step);
    }
    return prefix;
}

// The largest key whose prefix `enough` accepts; every smaller key's must be accepted too. 1 where none is. One block of 32 warps, five
// bits of the key at a time.
template <typename Enough> inline ulong find_key(const ulong* keys, const ulong* sums, uint chunks, Enough enough, uint most = CHUNK) {
    __shared__ uint accepted;
    ulong key = 0;
    for (int shift = 60; shift >= 0; shift -= 5) {
        if (threadIdx.x == 0) accepted = 0;
        __syncthreads();
        const ulong candidate = key + (ulong(warp_index()) << shift);
        // The highest digit has four bits only.
        const bool in_range = shift < 60 || warp_index() < 16;
        const bool ok = in_range && (candidate == key || enough(prefix_of(keys, sums, chunks, candidate, most)));
        if (ok && lane_index() == 0) atomicMax(&accepted, warp_index());
        __syncthreads();
        key += ulong(accepted) << shift;
        __syncthreads();
    }
    return max(key, 1ull);
}

// Inclusive sums over the threads of a block of 32 warps.
inline ulong block_sums(ulong value) {
    __shared__ ulong warps[32];
    const uint lane = lane_index();
    auto within_warp = [&](ulong sum) {
        for (int step = 1; step < 32; step *= 2) {
            const ulong before = __shfl_up_sync(FULL, sum, step);
            sum += lane >= step ? before : 0;
        }
        return sum;
    };
    const ulong sum = within_warp(value);
    __syncthreads();
    if (lane == 31) warps[warp_index()] = sum;
    __syncthreads();
    const ulong ends = within_warp(warps[lane]);
    const ulong before = __shfl_sync(FULL, ends, max(warp_index(), 1u) - 1);
    return sum + (warp_index() == 0 ? 0 : before);
}

// The largest key of a block of 32 warps.
inline ulong block_largest(ulong key) {
    __shared__ ulong largest;
    // An earlier answer has been read.
    __syncthreads();
    if (threadIdx.x == 0) largest = 0;
    __syncthreads();
    for (int step = 16; step > 0; step /= 2) key = max(key, __shfl_xor_sync(FULL, key, step));
    if (lane_index() == 0) atomicMax(&largest, key);
    __syncthreads();
    return largest;
}

// The token drawn among those whose keys are at least `kept`, at most TOGETHER: a thread has one of them. One block.
static constexpr uint TOGETHER = 1024;
inline ulong draw_together(const ulong* keys, uint chunks, ulong kept, float largest, SampleArgs args, float uniform) {
    __shared__ ulong front[TOGETHER];
    __shared__ uint count;
    const uint thread = threadIdx.x;
    front[thread] = 0;
    if (thread == 0) count = 0;
    __syncthreads();
    for (uint chunk = warp_index(); chunk < chunks; chunk += 32) {
        const ulong* sorted = keys + ulong(chunk) * CHUNK;
        for (uint i = lane_index(); i < CHUNK && sorted[i] >= kept; i += 32) front[atomicAdd(&count, 1)] = sorted[i];
    }
    __syncthreads();
    for (uint run = 2; run < 2 * count; run *= 2) {
        for (uint step = run / 2; step > 0; step /= 2) {
            const uint a = 2 * thread - (thread & (step - 1)), b = a + step;
            if (b < TOGETHER && (front[a] < front[b]) == ((a & run) == 0)) {
                const ulong x = front[a];
                front[a] = front[b];
                front[b] = x;
            }
            __syncthreads();
        }
    }
    const ulong key = front[thread], weight = weight_of(key, largest, 1.0f);
    const ulong until = block_sums(weight);
    // Nothing behind the last token weighs anything.
    const ulong total = block_largest(until);
    const bool enough = double(until - weight) >= double(args.top_p) * double(total) || power_of(key, largest, 1.0f) < double(args.min_p);
    const bool stays = thread == 0 || (key != 0 && !(enough && (args.top_p < 1.0f || args.min_p > 0.0f)));
    const ulong sum = block_sums(stays ? weight_of(key, largest, args.temperature) : 0);
    const double target = double(uniform) * double(block_largest(sum));
    const ulong drawn = block_largest(stays && double(sum) > target ? key : 0);
    return drawn == 0 ? front[0] : drawn;
}

// Draws. One block.
template <int = 0>
__global__ void __launch_bounds__(1024)
    sample_draw(const uint* best, const ulong* keys, const ulong* sums, const ulong* cuts, uint* y, uint chunks, SampleArgs args,
                const SampleLive* live) {
    begin();
    if (best[1]) return;
    // The keys of the tokens that are kept are at least `kept`.
    ulong kept = 1;
    if (args.top_k > 0 && args.top_k < args.dim) {
        kept = find_key(keys, sums, chunks, [&](Prefix p) { return p.count >= args.top_k; }, min(args.top_k, CHUNK));
        if (args.top_k <= TOGETHER) {
            const ulong token = draw_together(keys, chunks, kept, __uint_as_float(best[0]), args, live->uniform);
            if (threadIdx.x == 0) y[0] = min(key_index(token), args.dim - 1);
            return;
        }
    }
    if (args.top_p < 1.0f) {
        const double least = double(args.top_p) * double(prefix_of(keys, cuts, chunks, kept).weight);
        const ulong key = find_key(keys, cuts, chunks, [&](Prefix p) { return p.count > 0 && double(p.weight) >= least; });
        kept = max(kept, key);
    }
    if (args.min_p > 0.0f) {
        // Not below the first logit whose weight is too small: weights fall with the keys.
        const float largest = __uint_as_float(best[0]);
        __shared__ ulong limit;
        if (threadIdx.x == 0) limit = kept;
        __syncthreads();
        for (uint chunk = warp_index(); chunk < chunks; chunk += 32) {
            const ulong* sorted = keys + ulong(chunk) * CHUNK;
            uint below = 0, above = CHUNK;
            while (below < above) {
                const uint middle = (below + above) / 2;
                if (sorted[middle] != 0 && power_of(sorted[middle], largest, 1.0f) >= double(args.min_p)) below = middle + 1;
                else above = middle;
            }
            // One more than the first key that is too small.
            if (lane_index() == 0 && below < CHUNK && sorted[below] != 0) atomicMax(&limit, sorted[below] + 1);
        }
        __syncthreads();
        // At least the best one stays.
        kept = min(limit, rank_key(0, __uint_as_float(best[0])) & 0xffffffff00000000ull);
        kept = max(kept, 1ull);
        if (prefix_of(keys, sums, chunks, kept).count == 0) kept = 1;
    }
    const ulong sum = prefix_of(keys, sums, chunks, kept).weight;
    const double target = double(live->uniform) * double(sum);
    ulong token = find_key(keys, sums, chunks, [&](Prefix p) { return p.count > 0 && double(p.weight) > target; });
    token = max(token, kept);
    if (threadIdx.x == 0) y[0] = min(key_index(token), args.dim - 1);
}
