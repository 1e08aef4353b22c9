
// cache[h][start + t] = x[t][h], a thread an element.
template <typename T> __global__ void __launch_bounds__(256) store_kv(const float* x, T* cache, const StoreArgs* live) {
    begin();
    const StoreArgs args = *live;
    const ulong i = ulong(blockIdx.x) * 256 + threadIdx.x;
    if (i >= args.len) return;
    // Tokens times heads fit 32 bits, as do the heads' values: divisions of 64 bits are slow.
    const uint rest = uint(i / args.head_dim), d = uint(i - ulong(rest) * args.head_dim);
    const uint head = rest % args.n_kv_heads, token = rest / args.n_kv_heads;
    cache[(ulong(head) * args.capacity + args.start + token) * args.head_dim + d] = T(x[i]);
}

// Eight values of a row of a cache from d < dim on, zero from dim on.
template <typename T> inline void cached_values(const T* row, uint d, uint dim, bool vectors, float* v) {
    if (vectors) {
        constexpr uint words = sizeof(T) / 2;
        alignas(16) T buffer[8];
#pragma unroll
        for (uint w = 0; w < words; w++) reinterpret_cast<uint4*>(buffer)[w] = reinterpret_cast<const uint4*>(row + d)[w];
#pragma unroll
        for (uint i = 0; i < 8; i++) v[i] = float(buffer[i]);
    } else {
#pragma unroll
        for (uint i = 0; i < 8; i++) v[i] = d + i < dim ? float(row[d + i]) : 0.0f;
    }
}

// Positions of a part: the parts of a head are computed apart and then put together, the same parts whatever the number of tokens.
static constexpr uint PART = 128;
static constexpr uint PART_THREADS = 128;

// Attention of Q heads that share keys and values, for one token over one part of the positions: sums of values, unnormalised, the largest
// score and the sum of weights. With one part (args.parts) the result itself. Grid of head groups, parts, tokens. Shared memory: Q
// queries of 8 * ceil(dim / 8) floats, then Q * PART scores.
template <typename T, uint Q>
__global__ void __launch_bounds__(PART_THREADS)
    attention(const float* q, const T* keys, const T* values, float* y, float* partial, float2* totals, const PartArgs* live) {
    begin();
    extern __shared__ float memory[];
    __shared__ float shared[32];
    const PartArgs args = *live;
    const uint dim = args.head_dim, dim8 = DIVIDE_UP(dim, 8) * 8, thread = threadIdx.x;
    const uint head0 = blockIdx.x * Q, token = blockIdx.z;
    const uint last = args.start + token, first = last < args.window ? 0 : last - args.window + 1;
    // Parts are counted from the one that the window of the first token begins in, so that the grid is no larger than the window.
    const uint earliest = args.start < args.window ? 0 : args.start - args.window + 1;
    const uint part = earliest / PART + blockIdx.y;
    const uint from = max(part * PART, first), to = min(part * PART + PART, last + 1);
    const ulong place = (ulong(token) * args.parts + blockIdx.y) * args.n_heads + head0;
    if (from >= to) {
        if (thread < Q) totals[place + thread] = make_float2(-infinity(), 0.0f);
        return;
    }
    float* query = memory;
    float* scores = memory + Q * dim8;
    for (uint i = thread; i < Q * dim8; i += PART_THREADS) {
        const uint g = i / dim8, d = i % dim8;
        query[i] = d < dim ? q[(ulong(token) * args.n_heads + head0 + g) * dim + d] * args.scale : 0.0f;
    }
    __syncthreads();
    const ulong cache = ulong(head0 / (args.n_heads / args.n_kv_heads)) * args.capacity;
    const bool vectors = args.vectors;
    const uint count = to - from;
    float largest[Q];
#pragma unroll
    for (uint g = 0; g < Q; g++) largest[g] = -infinity();
    // A thread has whole positions: no sums between threads.
    for (uint p = thread; p < count; p += PART_THREADS) {
        const T* row = keys + (cache + from + p) * dim;
        float sums[Q];
#pragma unroll
        for (uint g = 0; g < Q; g++) sums[g] = 0.0f;
#pragma unroll 4
        for (uint d = 0; d < dim; d += 8) {
            float v[8];
            cached_values(row, d, dim, vectors, v);
#pragma unroll
            for (uint g = 0; g < Q; g++) {
                const float4 a = *reinterpret_cast<const float4*>(query + g * dim8 + d);
                const float4 b = *reinterpret_cast<const float4*>(query + g * dim8 + d + 4);
                sums[g] = fmaf(a.x, v[0], sums[g]);
                sums[g] = fmaf(a.y, v[1], sums[g]);
                sums[g] = fmaf(a.z, v[2], sums[g]);
                sums[g] = fmaf(a.w, v[3], sums[g]);
                sums[g] = fmaf(b.x, v[4], sums[g]);
                sums[g] = fmaf(b.y, v[5], sums[g]);
                sums[g] = fmaf(b.z, v[6], sums[g]);
                sums[g] = fmaf(b.w, v[7], sums[g]);
            }
        }
#pragma unroll
        for (uint g = 0; g < Q; g++) {
            if (args.soft_cap > 0.0f) sums[g] = args.soft_cap * tanhf(sums[g] / args.soft_cap);
            scores[g * PART + p] = sums[g];
            largest[g] = fmaxf(largest[g], sums[g]);
        }
    }
    float total[Q];
#pragma unroll
    for (uint g = 0; g < Q; g++) {
        largest[g] = block_max(largest[g], shared);
        total[g] = 0.0f;
        for (uint p = thread; p < count; p += PART_THREADS) {
            const float weight = expf(scores[g * PART + p] - largest[g]);
            scores[g * PART + p] = weight;
            total[g] += weight;
        }
        total[g] = block_sum(total[g], shared);
    }
    // Eight values of the head by a thread, the positions dealt to as many groups of threads as there are.
    const uint octets = dim8 / 8;
    const uint groups = PART_THREADS / octets > 0 ? PART_THREADS / octets : 1;
    float* sums = scores + Q * PART;
    for (uint o0 = 0; o0 < octets; o0 += PART_THREADS) {
        const uint octet = o0 + thread % octets, group = thread / octets;
        float sum[Q][8];
#pragma unroll
        for (uint g = 0; g < Q; g++) {
#pragma unroll
            for (uint i = 0; i < 8; i++) sum[g][i] = 0.0f;
        }
        if (group < groups && octet < octets) {
#pragma unroll 4
            for (uint p = group; p < count; p += groups) {
                float v[8];
                cached_values(values + (cache + from + p) * dim, 8 * octet, dim, vectors, v);
#pragma unroll
                for (uint g = 0; g < Q; g++) {
                    const float weight = scores[g * PART + p];
#pragma unroll
                    for (uint i = 0; i < 8; i++) sum[g][i] = fmaf(weight, v[i], sum[g][i]);
                }
            }
        }
        // The groups' sums meet in shared memory, one query head after the other.
#pragma unroll
        for (uint g = 0; g < Q; g++) {
            if (group < groups && octet < octets) {
#pragma unroll
                for (uint i = 0; i < 8; i++) sums[group * dim8 + 8 * octet + i] = sum[g][i];
            }
            __syncthreads();
            for (uint d = 8 * o0 + thread; d < min(dim, 8 * (o0 + PART_THREADS)); d += PART_THREADS) {
                float value = 0.0f;
                for (uint other = 0; other < groups; other++) value += sums[other * dim8 + d];
                if (args.parts == 1) y[(ulong(token) * args.n_heads + head0 + g) * dim + d] = value / total[g];
                else partial[(place + g) * dim + d] = value;
            }
            __syncthreads();
        }
    }
#pragma unroll
    for (uint g = 0; g < Q; g++) {
        if (args.parts > 1 && thread == g) totals[place + g] = make_float2(largest[g], total[g]);
    }
}

// Puts the parts of a head together; grid of heads, tokens.
template <int = 0>
__global__ void __launch_bounds__(128)
    attention_combine(const float* partial, const float2* totals, float* y, const PartArgs* live) {
    begin();
    const PartArgs args = *live;
    const uint head = blockIdx.x, token = blockIdx.y;
    const ulong place = ulong(token) * args.parts * args.n_heads + head;
    float largest = -infinity(), total = 0.0f;
    for (uint part = 0; part < args.parts; part++) largest = fmaxf(largest, totals[place + part * args.n_heads].x);
    for (uint part = 0; part < args.parts; part++) {
        const float2 of = totals[place + part * args.n_heads];
        total = fmaf(expf(of.x - largest), of.y, total);
    }
    for (uint d = threadIdx.x; d < args.head_dim; d += 128) {
        float sum = 0.0f;
        for (uint part = 0; part < args.parts; part++) {
            const float2 of = totals[place + part * args.n_heads];
            // Nothing was written for a part without positions.
            if (of.y > 0.0f) sum = fmaf(expf(of.x - largest), partial[(place + part * args.n_heads) * args.head_dim + d], sum);
        }
        y[(ulong(token) * args.n_heads + head) * args.head_dim + d] = sum / total;
    }
}
