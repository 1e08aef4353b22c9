// Attention of few tokens over a cache of halves, for heads of D = 64, 128 or 256 values: all loads of a block are under way at once, and no two
// warps wait for each other before the end. turn_attend.cu has it together with what comes before it.

// Positions of a part, and of a warp of it: the parts of a head are computed apart and then put together, the same parts whatever the number of tokens.
static constexpr uint HEADS_PART = 64, HEADS_THREADS = 256, HEADS_WARPS = HEADS_THREADS / 32, WARP_POSITIONS = HEADS_PART / HEADS_WARPS;
// Sums that the parts of a head are dealt to by their absolute number, added in this order at last.
static constexpr uint STRIPES = 8;
// Blocks of a head group and token that have ended; zero before and after a launch.
static constexpr uint MOST_GROUPS = 4096;
__device__ uint heads_done[MOST_GROUPS];

inline void unpack_octet(uint4 packed, float (&v)[8]) {
    const uint words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (uint i = 0; i < 4; i++) v[2 * i] = low_half(words[i]), v[2 * i + 1] = high_half(words[i]);
}

// The first position that a token sees.
inline uint first_seen(const PartArgs& args, uint token) {
    const uint last = args.start + token;
    return last < args.window ? 0 : last - args.window + 1;
}
// The first part of a launch, counted from position 0; of a token's parts, counted from that one, the first that has positions, and the first after them.
inline uint first_part(const PartArgs& args) { return first_seen(args, 0) / HEADS_PART; }
inline uint first_of_token(const PartArgs& args, uint token) { return first_seen(args, token) / HEADS_PART - first_part(args); }
inline uint end_of_token(const PartArgs& args, uint token) { return (args.start + token) / HEADS_PART + 1 - first_part(args); }

// Where the parts of a head lie, and what puts them together.
struct Parts {
    const float* partial;
    const float2* totals;
    ulong place; // of part 0 of the head
    uint first, low, count, heads;
    float2 own; // the end of the first part of this lane, which has every 32nd by its absolute number
    float largest, total;

    // A warp: the largest score, and the sum of weights relative to it.
    __device__ Parts(const float* partial, const float2* totals, const PartArgs& args, uint token, uint head)
        : partial(partial), totals(totals), place(ulong(token) * args.parts * args.n_heads + head), first(first_part(args)), low(first_of_token(args, token)),
          count(end_of_token(args, token)), heads(args.n_heads) {
        const uint start = (lane_index() - first) % 32;
        own = of(start);
        largest = own.x;
        for (uint i = start + 32; i < count; i += 32) largest = fmaxf(largest, of(i).x);
        largest = warp_max(largest);
        total = expf(own.x - largest) * own.y;
        for (uint i = start + 32; i < count; i += 32) total = fmaf(expf(of(i).x - largest), of(i).y, total);
        total = warp_sum(total);
    }
    // The end of part i: of one without positions nobody wrote it.
    __device__ float2 of(uint i) const { return i >= low && i < count ? __ldcg(totals + place + ulong(i) * heads) : make_float2(-infinity(), 0.0f); }
    // What part i, which ends so, counts for: nothing where it has no positions, or there is no such part.
    __device__ float weight(uint i, float2 end) const { return i < count && end.y > 0.0f ? expf(end.x - largest) : 0.0f; }
    // sum += weight times values d to d + 3 of part i. Some part is loaded in any case, so that no load waits for another.
    __device__ void add(uint i, float weight, uint d, uint dim, float4& sum) const {
        const float* from = partial + place * dim + d;
        const float4 v = __ldcg(reinterpret_cast<const float4*>(from + ulong(max(low, min(i, count - 1))) * (heads * dim)));
        sum = make_float4(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z), fmaf(weight, v.w, sum.w));
    }
};

inline float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
inline float4 over(float4 a, float b) { return make_float4(a.x / b, a.y / b, a.z / b, a.w / b); }

// A head's output by one warp, for few parts: all that it loads is under way at once.
template <uint D> inline void join_few(const Parts& parts, float* y) {
    constexpr uint ROUNDS = 3; // of the stripes: 16 parts from any first one
    // Before the first part the number wraps beyond the last one.
    const uint skip = parts.first % STRIPES, rounds = DIVIDE_UP(parts.count + skip, STRIPES);
    // Lane l has part l - skip, whose end another lane has loaded.
    const uint holder = (lane_index() - skip + parts.first) % 32;
    const float mine = parts.weight(lane_index() - skip, make_float2(__shfl_sync(FULL, parts.own.x, holder), __shfl_sync(FULL, parts.own.y, holder)));
#pragma unroll
    for (uint d = 0; d < D; d += 128) {
        const uint at = min(d + 4 * lane_index(), D - 4);
        float4 sums[STRIPES];
#pragma unroll
        for (uint s = 0; s < STRIPES; s++) sums[s] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint r = 0; r < ROUNDS; r++) {
            if (r >= rounds) break;
#pragma unroll
            for (uint s = 0; s < STRIPES; s++) parts.add(r * STRIPES + s - skip, __shfl_sync(FULL, mine, r * STRIPES + s), at, D, sums[s]);
        }
        float4 sum = sums[0];
#pragma unroll
        for (uint s = 1; s < STRIPES; s++) sum = plus(sum, sums[s]);
        if (d + 4 * lane_index() < D) *reinterpret_cast<float4*>(y + at) = over(sum, parts.total);
    }
}

// Puts the parts of a head together: a warp a stripe. Grid of heads, tokens.
template <uint D>
__global__ void __launch_bounds__(32 * STRIPES) join_heads(const float* partial, const float2* totals, float* y, const PartArgs* live) {
    const PartArgs args = *live;
    begin();
    __shared__ float4 shared[STRIPES][D / 4];
    const uint head = blockIdx.x, token = blockIdx.y, stripe = warp_index();
    const Parts parts(partial, totals, args, token, head);
    for (uint d = 4 * lane_index(); d < D; d += 128) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (uint i = (stripe - parts.first) % STRIPES; i < parts.count; i += STRIPES) parts.add(i, parts.weight(i, parts.of(i)), d, D, sum);
        shared[stripe][d / 4] = sum;
    }
    __syncthreads();
    for (uint d = threadIdx.x; d < D / 4; d += 32 * STRIPES) {
        float4 sum = shared[0][d];
#pragma unroll
        for (uint s = 1; s < STRIPES; s++) sum = plus(sum, shared[s][d]);
        reinterpret_cast<float4*>(y + (ulong(token) * args.n_heads + head) * D)[d] = over(sum, parts.total);
    }
}

// Queries that lie in memory turned, with all keys and values in the caches.
template <uint Q, uint D> struct Given {
    static constexpr bool TURNS = false;
    const float* q;
    uint heads;
    float (&shared)[Q][D];
    __device__ void load(uint token, uint head0, bool) { q += (ulong(token) * heads + head0) * D; }
    __device__ void prepare() {
        for (uint e = 4 * threadIdx.x; e < Q * D; e += 4 * HEADS_THREADS) *reinterpret_cast<float4*>(&shared[0][0] + e) = *reinterpret_cast<const float4*>(q + e);
        __syncthreads();
    }
    __device__ const float* query(uint g) const { return shared[g]; }
    __device__ uint4 key(uint) const { return make_uint4(0, 0, 0, 0); }
    __device__ uint4 value(uint) const { return make_uint4(0, 0, 0, 0); }
    __device__ void finish() {}
};

// The threads of a part, one of PARTS that a block has.
struct PartThreads {
    uint index, warp; // of the block's parts; of the part's warps
    __device__ PartThreads() : index(warp_index() / HEADS_WARPS), warp(warp_index() % HEADS_WARPS) {}
};
// What a part leaves in shared memory: for each of its warps the sums of values, unnormalised, the largest score and the sum of weights; at last the first
// warp's are the part's.
template <uint Q, uint D> struct PartSums {
    float sums[HEADS_WARPS][Q][D];
    float2 ends[HEADS_WARPS][Q];
};

// The positions of a part that a token sees, `from` to `to`, and where the part's keys and values lie that a group of heads shares.
struct Cached {
    const half *keys, *values;
    uint part, from, to;
    bool newest; // whether the token's own position is among them
    __device__ Cached(const PartArgs& args, uint token, uint index) {
        const uint last = args.start + token;
        part = first_part(args) + index;
        from = max(part * HEADS_PART, first_seen(args, token)), to = min(part * HEADS_PART + HEADS_PART, last + 1);
        newest = part == last / HEADS_PART;
    }
    __device__ bool none() const { return from >= to; }
    template <uint D> __device__ void in(const half* k_cache, const half* v_cache, const PartArgs& args, uint head0) {
        const ulong at = (ulong(head0 / (args.n_heads / args.n_kv_heads)) * args.capacity + part * HEADS_PART) * D;
        keys = k_cache + at, values = v_cache + at;
    }
    // What lies in memory is brought nearer while the kernel before still writes what is to be added.
    template <uint D> __device__ void fetch() const {
        const uint bytes = (to - part * HEADS_PART) * D * 2;
        for (uint at = threadIdx.x % HEADS_THREADS * 128; at < bytes; at += HEADS_THREADS * 128) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const uchar*>(keys) + at));
            asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const uchar*>(values) + at));
        }
    }
};

// A warp's share of a part.
template <uint Q, uint D, typename Rows>
inline void attend_part(Rows& rows, const Cached& cached, const PartArgs& args, PartSums<Q, D>& found, float (&weights)[Q][WARP_POSITIONS]) {
    // Lanes that share a position's keys, two octets each, and positions of a warp at a time; the same for values, an octet each.
    constexpr uint KEY_LANES = D / 16, KEY_STEP = 32 / KEY_LANES, KEY_TURNS = WARP_POSITIONS / KEY_STEP;
    constexpr uint VALUE_LANES = D / 8, VALUE_STEP = 32 / VALUE_LANES, VALUE_TURNS = WARP_POSITIONS / VALUE_STEP;
    const uint lane = lane_index(), warp = PartThreads().warp;
    uint4 k[KEY_TURNS][2], v[VALUE_TURNS];
    // Within the part; those outside of `from` to `to` have no weight.
    const uint low = cached.from - cached.part * HEADS_PART, high = cached.to - cached.part * HEADS_PART;
    const uint key_position = warp * WARP_POSITIONS + lane / KEY_LANES, key_octet = lane % KEY_LANES;
    const uint value_position = warp * WARP_POSITIONS + lane / VALUE_LANES, value_octet = lane % VALUE_LANES;
#pragma unroll
    for (uint i = 0; i < KEY_TURNS; i++) {
        const uint p = min(max(key_position + i * KEY_STEP, low), high - 1);
#pragma unroll
        for (uint j = 0; j < 2; j++) k[i][j] = *reinterpret_cast<const uint4*>(cached.keys + p * D + 8 * (key_octet + j * KEY_LANES));
    }
#pragma unroll
    for (uint i = 0; i < VALUE_TURNS; i++) {
        const uint p = min(max(value_position + i * VALUE_STEP, low), high - 1);
        v[i] = *reinterpret_cast<const uint4*>(cached.values + p * D + 8 * value_octet);
    }
    rows.prepare();
    if (Rows::TURNS && cached.newest) { // not yet in the caches, where every block could read it
        const uint p = high - 1;
#pragma unroll
        for (uint i = 0; i < KEY_TURNS; i++)
#pragma unroll
            for (uint j = 0; j < 2; j++)
                if (key_position + i * KEY_STEP == p) k[i][j] = rows.key(key_octet + j * KEY_LANES);
#pragma unroll
        for (uint i = 0; i < VALUE_TURNS; i++)
            if (value_position + i * VALUE_STEP == p) v[i] = rows.value(value_octet);
    }
    // A loop, as instructions come from memory too: a kernel's first pass over its text takes longer than what it computes.
#pragma unroll 1
    for (uint g = 0; g < Q; g++) {
        const float* row = rows.query(g) + 8 * key_octet;
        float query[2][8];
#pragma unroll
        for (uint j = 0; j < 2; j++) {
            const float4 a = *reinterpret_cast<const float4*>(row + 8 * j * KEY_LANES), b = *reinterpret_cast<const float4*>(row + 8 * j * KEY_LANES + 4);
            const float eight[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (uint e = 0; e < 8; e++) query[j][e] = eight[e] * args.scale;
        }
        float scores[KEY_TURNS], largest = -infinity(), total = 0.0f;
#pragma unroll
        for (uint i = 0; i < KEY_TURNS; i++) {
            float& score = scores[i];
            score = 0.0f;
#pragma unroll
            for (uint j = 0; j < 2; j++) {
                float key[8];
                unpack_octet(k[i][j], key);
#pragma unroll
                for (uint e = 0; e < 8; e++) score = fmaf(query[j][e], key[e], score);
            }
#pragma unroll
            for (uint step = KEY_LANES / 2; step > 0; step /= 2) score += __shfl_xor_sync(FULL, score, step);
            if (args.soft_cap > 0.0f) score = args.soft_cap * tanhf(score / args.soft_cap);
            const uint p = key_position + i * KEY_STEP;
            if (p < low || p >= high) score = -infinity();
            largest = fmaxf(largest, score);
        }
#pragma unroll
        for (uint step = KEY_LANES; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, step));
#pragma unroll
        for (uint i = 0; i < KEY_TURNS; i++) {
            const float weight = largest == -infinity() ? 0.0f : expf(scores[i] - largest);
            total += weight;
            if (key_octet == 0) weights[g][lane / KEY_LANES + i * KEY_STEP] = weight;
        }
#pragma unroll
        for (uint step = KEY_LANES; step < 32; step *= 2) total += __shfl_xor_sync(FULL, total, step);
        if (lane == 0) found.ends[warp][g] = make_float2(largest, total);
        __syncwarp();
        float out[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (uint i = 0; i < VALUE_TURNS; i++) {
            float value[8];
            unpack_octet(v[i], value);
            const float weight = weights[g][lane / VALUE_LANES + i * VALUE_STEP];
#pragma unroll
            for (uint e = 0; e < 8; e++) out[e] = fmaf(weight, value[e], out[e]);
        }
#pragma unroll
        for (uint e = 0; e < 8; e++) {
#pragma unroll
            for (uint step = VALUE_LANES; step < 32; step *= 2) out[e] += __shfl_xor_sync(FULL, out[e], step);
        }
        if (lane < VALUE_LANES) {
            float4* to = reinterpret_cast<float4*>(&found.sums[warp][g][8 * value_octet]);
            to[0] = make_float4(out[0], out[1], out[2], out[3]), to[1] = make_float4(out[4], out[5], out[6], out[7]);
        }
    }
}

// Element e of a part's sums of all its warps, what they are relative to, and the sum of weights.
template <uint Q, uint D> inline float part_sum(const PartSums<Q, D>& found, uint e, float2& end) {
    const uint g = e / D, d = e % D;
    float sum = 0.0f;
    end = make_float2(-infinity(), 0.0f);
#pragma unroll
    for (uint w = 0; w < HEADS_WARPS; w++) end.x = fmaxf(end.x, found.ends[w][g].x);
#pragma unroll
    for (uint w = 0; w < HEADS_WARPS; w++) {
        const float factor = expf(found.ends[w][g].x - end.x);
        end.y = fmaf(factor, found.ends[w][g].y, end.y);
        sum = fmaf(factor, found.sums[w][g][d], sum);
    }
    return sum;
}

// Attention of Q heads that share keys and values, for one token over one part of the positions: sums of values, unnormalised, the largest score and
// the sum of weights; with one part the result itself. With JOIN the last block of a token and head group puts the parts together. Grid of head
// groups, parts, tokens; blocks whose part is beyond the context's end have nothing to do.
template <uint Q, uint D, bool JOIN, typename Rows>
inline void attend(Rows& rows, const half* keys, const half* values, float* y, float* partial, float2* totals, const PartArgs& args) {
    __shared__ float weights[HEADS_WARPS][Q][WARP_POSITIONS];
    __shared__ __align__(16) PartSums<Q, D> found;
    __shared__ bool is_last;
    const uint warp = warp_index(), head0 = blockIdx.x * Q, token = blockIdx.z;
    Cached cached(args, token, blockIdx.y);
    if (cached.none()) return;
    cached.in<D>(keys, values, args, head0);
    cached.fetch<D>();
    begin();
    rows.load(token, head0, cached.newest);
    attend_part<Q, D>(rows, cached, args, found, weights[warp]);
    __syncthreads();
    const ulong place = (ulong(token) * args.parts + blockIdx.y) * args.n_heads + head0;
#pragma unroll 1
    for (uint e = threadIdx.x; e < Q * D; e += HEADS_THREADS) {
        const uint g = e / D, d = e % D;
        float2 end;
        const float sum = part_sum(found, e, end);
        if (args.parts == 1) {
            y[(ulong(token) * args.n_heads + head0 + g) * D + d] = sum / end.y;
        } else {
            __stcg(partial + (place + g) * D + d, sum);
            if (d == 0) __stcg(totals + place + g, end);
        }
    }
    if (args.parts == 1) return rows.finish();
    if (!JOIN && !Rows::TURNS) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        // Back to zero with the last block.
        const uint others = end_of_token(args, token) - first_of_token(args, token) - 1;
        is_last = atomicInc(heads_done + token * gridDim.x + blockIdx.x, others) == others;
        __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    rows.finish();
    if (!JOIN) return;
    for (uint g = warp; g < Q; g += HEADS_WARPS) {
        const Parts parts(partial, totals, args, token, head0 + g);
        join_few<D>(parts, y + (ulong(token) * args.n_heads + head0 + g) * D);
    }
}

template <uint Q, uint D, bool JOIN>
__global__ void __launch_bounds__(HEADS_THREADS)
    attention_heads(const float* q, const half* keys, const half* values, float* y, float* partial, float2* totals, const PartArgs* live) {
    // Live values are in place before a list's first kernel starts.
    const PartArgs args = *live;
    __shared__ __align__(16) float shared[Q][D];
    Given<Q, D> rows{q, args.n_heads, shared};
    attend<Q, D, JOIN>(rows, keys, values, y, partial, totals, args);
}
