// Attention of one token with what comes before it: norms of its queries and keys, rotations, stores. heads.cu has what attends.

// What a step of one token does to queries, keys and values before it attends; each output may be its input.
struct StepArgs {
    const float *q, *k, *v;
    float *q_out, *k_out;
    half *keys, *values; // the caches
    const uint* positions;
    const float* factors;
    const float *q_norm, *k_norm;
    float eps;
};
// The block's rows in shared memory.
template <uint Q, uint D> struct StepRows {
    float queries[Q][D], key[D];
    half key_halves[D], value_halves[D];
    float2 angles[D / 2]; // sine and cosine
};
// Queries of one token, Q heads and all that share their keys, which are normed (NORM) and turned here. The block that has the newest position in its part
// does the same to its key, and stores key and value. Every block of a head reads its queries, so that the last one writes them.
template <uint Q, uint D, bool NORM, uint THREADS> struct Turned {
    static constexpr bool TURNS = true;
    static constexpr uint WARPS = THREADS / 32, ROUNDS = DIVIDE_UP(Q + 2, WARPS), QUADS = DIVIDE_UP(D, 128);
    const StepArgs& step;
    const RopeArgs& rope;
    const RopeTable& frequencies;
    StepRows<Q, D>& shared;
    ulong head, cached; // where the first query, the key and the newest row of a cache begin
    ulong key_head;
    float4 x[ROUNDS][QUADS], w[ROUNDS][QUADS];
    uint position;
    bool newest; // whether a part of the block has the newest position

    // A warp's rows: queries, then the key and the value of the newest position.
    __device__ static uint row_of(uint round) { return warp_index() + round * WARPS; }
    __device__ bool has(uint row) const { return row < Q || (newest && row < Q + 2); }
    __device__ void load(uint, uint head0, bool has_newest) {
        newest = has_newest;
        head = ulong(head0) * D, key_head = ulong(head0 / Q) * D;
        position = step.positions[0];
#pragma unroll
        for (uint r = 0; r < ROUNDS; r++) {
            const uint row = row_of(r);
            const float* from = row < Q ? step.q + head + row * D : (row == Q ? step.k : step.v) + key_head;
            const float* weight = row < Q ? step.q_norm : step.k_norm;
#pragma unroll
            for (uint c = 0; c < QUADS; c++) {
                const uint at = 128 * c + 4 * lane_index();
                x[r][c] = w[r][c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (!has(row) || at >= D) continue;
                x[r][c] = *reinterpret_cast<const float4*>(from + at);
                if (NORM && row <= Q) w[r][c] = *reinterpret_cast<const float4*>(weight + at);
            }
        }
    }
    // As rms_norm_quads sums it.
    __device__ void norm(float4 (&x)[QUADS], const float4 (&w)[QUADS]) const {
        float squares = 0.0f;
#pragma unroll
        for (uint c = 0; c < QUADS; c++) {
            float sum = fmaf(x[c].x, x[c].x, 0.0f);
            sum = fmaf(x[c].y, x[c].y, sum);
            sum = fmaf(x[c].z, x[c].z, sum);
            sum = fmaf(x[c].w, x[c].w, sum);
            squares += warp_sum(sum);
        }
        const float factor = 1.0f / sqrtf(squares / float(D) + step.eps);
#pragma unroll
        for (uint c = 0; c < QUADS; c++) x[c] = make_float4(x[c].x * factor * w[c].x, x[c].y * factor * w[c].y, x[c].z * factor * w[c].z, x[c].w * factor * w[c].w);
    }
    __device__ void prepare() {
        const uint lane = lane_index();
        if (threadIdx.x < rope.n_rot / 2) {
            float2& at = shared.angles[threadIdx.x];
            angle(position, rope, frequencies, step.factors, threadIdx.x, at.x, at.y);
        }
        __syncthreads();
#pragma unroll
        for (uint r = 0; r < ROUNDS; r++) {
            const uint row = row_of(r);
            if (!has(row)) continue;
            if (NORM && row <= Q) norm(x[r], w[r]);
            float* to = row < Q ? shared.queries[row] : shared.key;
            if (row <= Q) {
#pragma unroll
                for (uint c = 0; c < QUADS; c++)
                    if (128 * c + 4 * lane < D) *reinterpret_cast<float4*>(to + 128 * c + 4 * lane) = x[r][c];
                __syncwarp();
                for (uint i = lane; i < rope.n_rot / 2; i += 32) {
                    const uint2 at = pair_of(rope, i);
                    const float2 pair = turned(to[at.x], to[at.y], shared.angles[i].x, shared.angles[i].y);
                    to[at.x] = pair.x, to[at.y] = pair.y;
                }
                __syncwarp();
            }
            if (row < Q) continue;
            // The key or the value of the newest position.
            half* halves = row == Q ? shared.key_halves : shared.value_halves;
            half* cache = row == Q ? step.keys : step.values;
#pragma unroll
            for (uint c = 0; c < QUADS; c++) {
                const uint at = 128 * c + 4 * lane;
                if (at >= D) continue;
                const float4 value = row == Q ? *reinterpret_cast<const float4*>(to + at) : x[r][c];
                const uint2 packed = make_uint2(pack_half2(value.x, value.y), pack_half2(value.z, value.w));
                *reinterpret_cast<uint2*>(halves + at) = packed;
                *reinterpret_cast<uint2*>(cache + cached + at) = packed;
                if (row == Q) *reinterpret_cast<float4*>(step.k_out + key_head + at) = value;
            }
        }
        __syncthreads();
    }
    __device__ const float* query(uint g) const { return shared.queries[g]; }
    __device__ uint4 key(uint octet) const { return reinterpret_cast<const uint4*>(shared.key_halves)[octet]; }
    __device__ uint4 value(uint octet) const { return reinterpret_cast<const uint4*>(shared.value_halves)[octet]; }
    __device__ void finish() const {
        for (uint e = 4 * threadIdx.x; e < Q * D; e += 4 * THREADS) *reinterpret_cast<float4*>(step.q_out + head + e) = *reinterpret_cast<const float4*>(&shared.queries[0][0] + e);
    }
};

// Attention of one token whose queries and keys are turned, and normed before (NORM), and whose keys and values are stored, all heads of a key in one block.
template <uint Q, uint D, bool JOIN, bool NORM>
__global__ void __launch_bounds__(HEADS_THREADS)
    turn_attend(const __grid_constant__ StepArgs step, float* y, float* partial, float2* totals, const PartArgs* live, const __grid_constant__ RopeArgs rope,
                const __grid_constant__ RopeTable frequencies) {
    __shared__ __align__(16) StepRows<Q, D> shared;
    const PartArgs args = *live;
    Turned<Q, D, NORM, HEADS_THREADS> rows{step, rope, frequencies, shared};
    rows.cached = (ulong(blockIdx.x) * args.capacity + args.start) * D;
    attend<Q, D, JOIN>(rows, step.keys, step.values, y, partial, totals, args);
}

#if __CUDA_ARCH__ >= 900
inline void cluster_sync() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Word `at` of this block's shared memory in block `rank` of the cluster.
inline uint other(const void* at, uint rank) {
    uint address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(at)), "r"(rank));
    return address;
}
inline float load_other(const float* at, uint rank) {
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(other(at, rank)) : "memory");
    return value;
}

// turn_attend by a cluster of blocks for each head group, with two parts each, that put the parts together in their shared memories, in the same order.
// Grid of the cluster's blocks, head groups. The parts' sums are dynamic shared memory.
template <uint Q, uint D, bool NORM>
__global__ void __launch_bounds__(2 * HEADS_THREADS)
    turn_attend_cluster(const __grid_constant__ StepArgs step, float* y, const PartArgs* live, const __grid_constant__ RopeArgs rope, const __grid_constant__ RopeTable frequencies) {
    constexpr uint PARTS = 2, THREADS = PARTS * HEADS_THREADS;
    extern __shared__ __align__(16) uchar dynamic[];
    PartSums<Q, D>* const found = reinterpret_cast<PartSums<Q, D>*>(dynamic);
    __shared__ __align__(16) StepRows<Q, D> shared;
    __shared__ float weights[PARTS * HEADS_WARPS][Q][WARP_POSITIONS];
    const PartArgs args = *live;
    const uint lane = lane_index(), warp = warp_index(), head0 = blockIdx.y * Q, own = PartThreads().index;
    const Cached first(args, 0, blockIdx.x * PARTS), second(args, 0, blockIdx.x * PARTS + 1);
    // Warps without positions do once more what others do, so that all take part in the preparation; nobody reads what they find.
    Cached cached = own == 0 || second.none() ? first : second;
    cached.in<D>(step.keys, step.values, args, head0);
    Turned<Q, D, NORM, THREADS> rows{step, rope, frequencies, shared};
    rows.cached = (ulong(blockIdx.y) * args.capacity + args.start) * D;
    if (!first.none()) cached.fetch<D>();
    begin();
    if (!first.none()) {
        rows.load(0, head0, first.newest || second.newest);
        attend_part<Q, D>(rows, cached, args, found[own], weights[warp]);
        __syncthreads();
#pragma unroll 1
        for (uint e = threadIdx.x % HEADS_THREADS; e < Q * D; e += HEADS_THREADS) {
            float2 end;
            const float sum = part_sum(found[own], e, end);
            found[own].sums[0][e / D][e % D] = sum; // which no other thread reads
            if (e % D == 0) weights[own][e / D][0] = end.x, weights[own][e / D][1] = end.y; // of warps that are done
        }
    }
    cluster_sync();
    if (blockIdx.x == 0) rows.finish();
    // Outputs by 32, a warp's; the blocks' warps take them in turn.
    const uint from = first_part(args), count = end_of_token(args, 0), skip = from % STRIPES;
#pragma unroll 1
    for (uint task = blockIdx.x + gridDim.x * warp; task < Q * D / 32; task += gridDim.x * THREADS / 32) {
        const uint g = task / (D / 32), d = task % (D / 32) * 32 + lane;
        // As Parts and join_few put them together.
        const uint mine = (lane - from) % 32;
        float2 end = make_float2(-infinity(), 0.0f);
        if (mine < count) end = make_float2(load_other(&weights[mine % PARTS][g][0], mine / PARTS), load_other(&weights[mine % PARTS][g][1], mine / PARTS));
        const float largest = warp_max(end.x), total = warp_sum(expf(end.x - largest) * end.y), weight = end.y > 0.0f ? expf(end.x - largest) : 0.0f;
        float sums[STRIPES];
#pragma unroll
        for (uint s = 0; s < STRIPES; s++) sums[s] = 0.0f;
#pragma unroll
        for (uint round = 0; round < 3; round++)
#pragma unroll
            for (uint s = 0; s < STRIPES; s++) {
                const uint i = round * STRIPES + s - skip;
                if (i >= count) continue;
                sums[s] = fmaf(__shfl_sync(FULL, weight, (i + from) % 32), load_other(&found[i % PARTS].sums[0][g][d], i / PARTS), sums[s]);
            }
        float sum = sums[0];
#pragma unroll
        for (uint s = 1; s < STRIPES; s++) sum += sums[s];
        y[ulong(head0 + g) * D + d] = sum / total;
    }
    cluster_sync(); // nobody's memory goes before all have read it
}
#endif
