// Turns pair i, or copies value i that does not turn, of HEADS heads of a token, whose angle is computed once. Thread `index` of those for x; a row is a
// head of a token. store(row, d, value) takes value d of a row; all is read before any is stored.
template <uint HEADS, typename Store>
inline void turn_heads(const float* x, const uint* positions, const RopeArgs& args, const RopeTable& frequencies, const float* factors, ulong index, const Store& store) {
    const uint pairs = args.n_rot / 2, per_head = args.head_dim - pairs;
    if (index >= args.len / HEADS) return;
    // Tokens times heads fit 32 bits: one division of 64 bits, which are slow.
    const uint group = uint(index / per_head), i = uint(index - ulong(group) * per_head);
    const uint row = group * HEADS, token = row / args.n_heads;
    const bool turns = i < pairs;
    const uint a = pair_of(args, i).x, b = turns ? pair_of(args, i).y : pairs + i;
    float u[HEADS], v[HEADS];
#pragma unroll
    for (uint h = 0; h < HEADS; h++) {
        const float* head = x + ulong(row + h) * args.head_dim;
        u[h] = turns ? head[a] : 0.0f, v[h] = head[b];
    }
    float sine = 0.0f, cosine = 1.0f;
    if (turns) angle(positions[token], args, frequencies, factors, i, sine, cosine);
#pragma unroll
    for (uint h = 0; h < HEADS; h++) {
        if (turns) {
            const float2 pair = turned(u[h], v[h], sine, cosine);
            store(row + h, a, pair.x);
            store(row + h, b, pair.y);
        } else {
            store(row + h, b, v[h]);
        }
    }
}

// Turns pairs of values; y may be x. HEADS divides the heads.
template <uint HEADS>
__global__ void __launch_bounds__(256) rope(const float* x, const uint* positions, float* y, RopeArgs args,
                                            __grid_constant__ const RopeTable frequencies, const float* factors) {
    begin();
    const auto store = [&](uint row, uint d, float value) { y[ulong(row) * args.head_dim + d] = value; };
    turn_heads<HEADS>(x, positions, args, frequencies, factors, ulong(blockIdx.x) * 256 + threadIdx.x, store);
}

// Turns queries and keys, and stores keys and values into their caches: blocks for queries, then for keys, then for values. Each output may be its
// input. HEADS divides the heads of queries and of keys.
template <typename T, uint HEADS>
__global__ void __launch_bounds__(256)
    rope_store(const float* q, float* q_out, const float* k, float* k_out, const float* v, T* k_cache, T* v_cache, const uint* positions, RopeArgs q_args,
               RopeArgs k_args, const StoreArgs* live, __grid_constant__ const RopeTable frequencies, const float* factors) {
    // Live values are in place before a list's first kernel starts.
    const StoreArgs args = *live;
    begin();
    const uint q_blocks = uint((q_args.len / HEADS + 255) / 256), k_blocks = uint((k_args.len / HEADS + 255) / 256);
    if (blockIdx.x < q_blocks) {
        const auto store = [&](uint row, uint d, float value) { q_out[ulong(row) * args.head_dim + d] = value; };
        turn_heads<HEADS>(q, positions, q_args, frequencies, factors, ulong(blockIdx.x) * 256 + threadIdx.x, store);
        return;
    }
    // Where head `row` % n_kv_heads of a token lies in a cache.
    const auto cached = [&](uint row) {
        return (ulong(row % args.n_kv_heads) * args.capacity + args.start + row / args.n_kv_heads) * args.head_dim;
    };
    if (blockIdx.x < q_blocks + k_blocks) {
        const auto store = [&](uint row, uint d, float value) {
            k_out[ulong(row) * args.head_dim + d] = value;
            k_cache[cached(row) + d] = T(value);
        };
        turn_heads<HEADS>(k, positions, k_args, frequencies, factors, ulong(blockIdx.x - q_blocks) * 256 + threadIdx.x, store);
        return;
    }
    const ulong i = ulong(blockIdx.x - q_blocks - k_blocks) * 256 + threadIdx.x;
    if (i >= args.len) return;
    const uint row = uint(i / args.head_dim);
    v_cache[cached(row) + uint(i - ulong(row) * args.head_dim)] = T(v[i]);
}
