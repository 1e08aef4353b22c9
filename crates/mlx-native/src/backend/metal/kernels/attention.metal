
// Where element i of x [tokens, n_kv_heads, head_dim] lies in a cache.
inline ulong cache_place(constant StoreArgs& args, ulong i) {
    const ulong rest = i / args.head_dim, head = rest % args.n_kv_heads, token = rest / args.n_kv_heads;
    return (head * args.capacity + args.start + token) * args.head_dim + i % args.head_dim;
}

// cache[h][start + t] = x[t][h], 1024 elements a threadgroup of 256.
template <typename T>
[[kernel]] void store_kv(device const float* x [[buffer(0)]], device T* cache [[buffer(1)]], constant StoreArgs& args [[buffer(2)]],
                         uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    for (uint j = thread_index; j < 1024; j += 256) {
        const ulong i = ulong(group) * 1024 + j;
        if (i >= args.len) return;
        cache[cache_place(args, i)] = T(x[i]);
    }
}

// Attention of one head of one token by four simdgroups. Each takes every fourth position and keeps the running maximum, the
// sum and the weighted values of what it saw; at the end the four are combined. A lane has the values lane, lane + 32, … of the head,
// V of them; a head of more than 32 V is WIDE, and threadgroup z has values 32 V z and on.
template <typename T, uint V, bool WIDE>
[[kernel, max_total_threads_per_threadgroup(128)]] void attention(device const float* q [[buffer(0)]], device const T* keys [[buffer(1)]], device const T* values [[buffer(2)]],
                          device float* y [[buffer(3)]], constant AttentionArgs& args [[buffer(4)]],
                          uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float partial[4][32 * V];
    threadgroup float maxima[4];
    threadgroup float totals[4];
    const uint head = group.x, token = group.y, dim = args.head_dim;
    const ulong row = ulong(token) * args.n_heads + head;
    const ulong cache = ulong(head / (args.n_heads / args.n_kv_heads)) * args.capacity;
    const uint last = args.start + token, first = last < args.window ? 0 : last - args.window + 1;
    const uint first_value = WIDE ? group.z * 32 * V : 0, width = min(dim - first_value, 32 * V);
    float query[V], sums[V];
    for (uint i = 0; i < V; i++) {
        const uint d = lane + 32 * i;
        query[i] = !WIDE && d < dim ? q[row * dim + d] * args.scale : 0.0f;
        sums[i] = 0.0f;
    }
    float largest = -INFINITY, total = 0.0f;
    for (uint p = first + simdgroup; p <= last; p += 4) {
        const ulong at = (cache + p) * dim;
        float score = 0.0f;
        if (WIDE) {
            for (uint d = lane; d < dim; d += 32) score += q[row * dim + d] * args.scale * float(keys[at + d]);
        } else {
            for (uint i = 0; i < V; i++) {
                const uint d = lane + 32 * i;
                if (d < dim) score += query[i] * float(keys[at + d]);
            }
        }
        score = simd_sum(score);
        if (args.soft_cap > 0.0f) score = args.soft_cap * precise::tanh(score / args.soft_cap);
        const float next = max(largest, score);
        const float keep = precise::exp(largest - next), weight = precise::exp(score - next);
        largest = next;
        total = total * keep + weight;
        for (uint i = 0; i < V; i++) {
            const uint d = lane + 32 * i;
            if (d < width) sums[i] = sums[i] * keep + weight * float(values[at + first_value + d]);
        }
    }
    for (uint i = 0; i < V; i++) partial[simdgroup][lane + 32 * i] = sums[i];
    if (lane == 0) {
        maxima[simdgroup] = largest;
        totals[simdgroup] = total;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    largest = max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3]));
    float shares[4];
    total = 0.0f;
    for (uint s = 0; s < 4; s++) {
        shares[s] = precise::exp(maxima[s] - largest);
        total += shares[s] * totals[s];
    }
    for (uint d = thread_index; d < width; d += 128) {
        float sum = 0.0f;
        for (uint s = 0; s < 4; s++) sum += shares[s] * partial[s][d];
        y[row * dim + first_value + d] = sum / total;
    }
}

// The fraction of a turn, about -1/2 to 1/2, that position * frequency / factor leaves. The frequency, in turns, is a sum of two
// floats, and so is its quotient: a position of many thousand turns keeps its fraction to a few parts in 10^8.
inline float turn(float position, float2 frequency, float factor) {
    const float high = frequency.x / factor;
    const float low = (fma(-high, factor, frequency.x) + frequency.y) / factor;
    const float product = position * high;
    const float error = fma(position, high, -product);
    return (product - rint(product)) + (error + position * low);
}

// Turns a pair of values, or copies one that does not turn; y may be x. Pairs are those from chunk.x to chunk.x + chunk.y of each head, and
// the first chunk has the values that do not turn. Returns the places that it wrote, twice the same for a copy.
inline ulong2 rotate(device const float* x, device float* y, device const uint* positions, constant RopeArgs& args,
                     constant float2* frequencies, device const float* factors, uint2 chunk, ulong index) {
    const uint pairs = args.n_rot / 2, per_head = chunk.y + (chunk.x == 0 ? args.head_dim - args.n_rot : 0);
    const uint nth = index % per_head, i = chunk.x + nth;
    const ulong head = index / per_head * args.head_dim;
    if (nth >= chunk.y) {
        const ulong still = head + args.n_rot + (nth - chunk.y);
        y[still] = x[still];
        return ulong2(still, still);
    }
    const uint position = positions[index / per_head / args.n_heads];
    const bool negative = args.positions_unsigned == 0 && position >> 31;
    const uint magnitude = negative ? 0 - position : position;
    const float factor = args.has_factors ? factors[i] : 1.0f;
    // Two parts of the position that a float holds exactly.
    float t = turn(float(magnitude & 0xfff), frequencies[nth], factor) + turn(float(magnitude & ~0xfffu), frequencies[nth], factor);
    t -= rint(t);
    const float angle = 6.283185307f * (negative ? -t : t);
    const float sine = precise::sin(angle), cosine = precise::cos(angle);
    const ulong a = head + (args.interleaved ? 2 * i : i), b = a + (args.interleaved ? 1 : pairs);
    const float u = x[a], v = x[b];
    y[a] = u * cosine - v * sine;
    y[b] = u * sine + v * cosine;
    return ulong2(a, b);
}

// A thread for each pair and each value that does not turn.
[[kernel]] void rope(device const float* x [[buffer(0)]], device const uint* positions [[buffer(1)]], device float* y [[buffer(2)]],
                     constant RopeArgs& args [[buffer(3)]], constant float2* frequencies [[buffer(4)]],
                     device const float* factors [[buffer(5)]], constant uint2& chunk [[buffer(6)]],
                     uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    const ulong index = ulong(group) * 256 + thread_index;
    if (index < args.len) rotate(x, y, positions, args, frequencies, factors, chunk, index);
}

// Turns queries, turns keys and stores them, stores values: what lies between the projections and attention, in one launch. A thread for each
// pair of the queries, then of the keys, then for each value.
template <typename T>
[[kernel]] void rope_store(device const float* q [[buffer(0)]], device float* q_turned [[buffer(1)]], device const float* k [[buffer(2)]],
                           device float* k_turned [[buffer(3)]], device const float* v [[buffer(4)]],
                           device T* k_cache [[buffer(5)]], device T* v_cache [[buffer(6)]],
                           device const uint* positions [[buffer(7)]], constant RopeArgs& q_args [[buffer(8)]],
                           constant RopeArgs& k_args [[buffer(9)]], constant StoreArgs& store [[buffer(10)]],
                           constant float2* frequencies [[buffer(11)]], device const float* factors [[buffer(12)]],
                           uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    const uint2 all = uint2(0, q_args.n_rot / 2);
    ulong index = ulong(group) * 256 + thread_index;
    if (index < q_args.len) {
        rotate(q, q_turned, positions, q_args, frequencies, factors, all, index);
        return;
    }
    index -= q_args.len;
    if (index < k_args.len) {
        const ulong2 places = rotate(k, k_turned, positions, k_args, frequencies, factors, all, index);
        k_cache[cache_place(store, places.x)] = T(k_turned[places.x]);
        if (places.y != places.x) k_cache[cache_place(store, places.y)] = T(k_turned[places.y]);
        return;
    }
    index -= k_args.len;
    if (index < store.len) v_cache[cache_place(store, index)] = T(v[index]);
}
