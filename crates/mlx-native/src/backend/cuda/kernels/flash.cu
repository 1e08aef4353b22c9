
// Attention of many tokens on the tensor cores, cache and operands in halves, sums in floats. A block has 64 tokens of one head, a warp
// 16 of them; keys and values pass through shared memory POSITIONS at a time, the next while these are used. D is a multiple of 16.
static constexpr uint TOKENS = 64;

template <uint D, uint POSITIONS> struct Flash {
    static constexpr uint PITCH = D + 8;
    ushort query[TOKENS][PITCH];
    ushort keys[2][POSITIONS][PITCH];
    ushort values[2][POSITIONS][PITCH];
};

template <uint D, uint POSITIONS>
__global__ void __launch_bounds__(128)
    flash_attention(const float* q, const ushort* keys, const ushort* values, float* y, const PartArgs* live, uint n_tokens) {
    begin();
    typedef Flash<D, POSITIONS> F;
    extern __shared__ uint4 memory[];
    F& tile = *reinterpret_cast<F*>(memory);
    const PartArgs args = *live;
    const uint thread = threadIdx.x, lane = lane_index(), warp = warp_index();
    // The last tokens see the most positions: they start first.
    const uint head = blockIdx.x, token0 = (gridDim.y - 1 - blockIdx.y) * TOKENS;
    const ulong cache = ulong(head / (args.n_heads / args.n_kv_heads)) * args.capacity * D;
    const uint tokens = min(n_tokens - token0, TOKENS);
    const uint end = args.start + token0 + tokens;
    const uint first_seen = args.start + token0 < args.window ? 0 : args.start + token0 - args.window + 1;
    const uint first_step = first_seen / POSITIONS, last_step = DIVIDE_UP(end, POSITIONS);

    const auto load = [&](uint step) {
        if (step < last_step) {
            for (uint e = thread; e < POSITIONS * (D / 8); e += 128) {
                const uint p = e / (D / 8), piece = e % (D / 8), position = step * POSITIONS + p;
                const uint valid = position < end ? 16 : 0;
                const ulong source = cache + ulong(min(position, end - 1)) * D + 8 * piece;
                copy_async(&tile.keys[step % 2][p][8 * piece], keys + source, valid);
                copy_async(&tile.values[step % 2][p][8 * piece], values + source, valid);
            }
        }
        commit_copies();
    };
    load(first_step);
    for (uint e = thread; e < TOKENS * (D / 2); e += 128) {
        const uint t = e / (D / 2), pair = e % (D / 2);
        uint packed = 0;
        if (t < tokens) {
            const float2 two = *reinterpret_cast<const float2*>(q + (ulong(token0 + t) * args.n_heads + head) * D + 2 * pair);
            packed = pack_half2(two.x * args.scale, two.y * args.scale);
        }
        *reinterpret_cast<uint*>(&tile.query[t][2 * pair]) = packed;
    }
    __syncthreads();

    float out[D / 8][4];
#pragma unroll
    for (uint n = 0; n < D / 8; n++) {
#pragma unroll
        for (uint e = 0; e < 4; e++) out[n][e] = 0.0f;
    }
    float largest[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
    const uint row = args.start + token0 + 16 * warp + lane / 4;
    for (uint step = first_step; step < last_step; step++) {
        load(step + 1);
        wait_copies<1>();
        __syncthreads();
        float scores[POSITIONS / 8][4];
#pragma unroll
        for (uint n = 0; n < POSITIONS / 8; n++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) scores[n][e] = 0.0f;
        }
#pragma unroll
        for (uint d = 0; d < D; d += 16) {
            uint a[4];
            load_matrices(a, &tile.query[16 * warp + lane % 16][d + lane / 16 * 8]);
#pragma unroll
            for (uint n = 0; n < POSITIONS / 16; n++) {
                // Sixteen positions by sixteen values: two operands.
                uint b[4];
                load_matrices(b, &tile.keys[step % 2][16 * n + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
                multiply_accumulate(scores[2 * n], a, b[0], b[1]);
                multiply_accumulate(scores[2 * n + 1], a, b[2], b[3]);
            }
        }
        float step_largest[2] = {-infinity(), -infinity()};
#pragma unroll
        for (uint n = 0; n < POSITIONS / 8; n++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) {
                const uint position = step * POSITIONS + 8 * n + 2 * (lane % 4) + e % 2, at = row + 8 * (e / 2);
                if (args.soft_cap > 0.0f) scores[n][e] = args.soft_cap * tanhf(scores[n][e] / args.soft_cap);
                const bool seen = position <= at && at - position < args.window;
                scores[n][e] = seen ? scores[n][e] : -infinity();
                step_largest[e / 2] = fmaxf(step_largest[e / 2], scores[n][e]);
            }
        }
        float keep[2];
#pragma unroll
        for (uint half_row = 0; half_row < 2; half_row++) {
            float& seen = step_largest[half_row];
            seen = fmaxf(seen, __shfl_xor_sync(FULL, seen, 1));
            seen = fmaxf(seen, __shfl_xor_sync(FULL, seen, 2));
            const float next = fmaxf(largest[half_row], seen);
            // A row that has seen nothing yet has nothing to keep.
            keep[half_row] = next == -infinity() ? 1.0f : exp2f((largest[half_row] - next) * 1.4426950408889634f);
            largest[half_row] = next;
            total[half_row] *= keep[half_row];
        }
#pragma unroll
        for (uint n = 0; n < D / 8; n++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) out[n][e] *= keep[e / 2];
        }
#pragma unroll
        for (uint n = 0; n < POSITIONS / 8; n++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) {
                const float most = largest[e / 2];
                const float weight = most == -infinity() ? 0.0f : exp2f((scores[n][e] - most) * 1.4426950408889634f);
                scores[n][e] = weight;
                total[e / 2] += weight;
            }
        }
#pragma unroll
        for (uint p = 0; p < POSITIONS / 16; p++) {
            // The layout of a product is that of the next one's left operand.
            const uint a[4] = {pack_half2(scores[2 * p][0], scores[2 * p][1]), pack_half2(scores[2 * p][2], scores[2 * p][3]),
                               pack_half2(scores[2 * p + 1][0], scores[2 * p + 1][1]),
                               pack_half2(scores[2 * p + 1][2], scores[2 * p + 1][3])};
#pragma unroll
            for (uint n = 0; n < D / 16; n++) {
                uint b[4];
                load_matrices_transposed(b, &tile.values[step % 2][16 * p + lane % 16][16 * n + lane / 16 * 8]);
                multiply_accumulate(out[2 * n], a, b[0], b[1]);
                multiply_accumulate(out[2 * n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (uint half_row = 0; half_row < 2; half_row++) {
        total[half_row] += __shfl_xor_sync(FULL, total[half_row], 1);
        total[half_row] += __shfl_xor_sync(FULL, total[half_row], 2);
        const uint t = 16 * warp + lane / 4 + 8 * half_row;
        if (t >= tokens) continue;
        float* to = y + (ulong(token0 + t) * args.n_heads + head) * D;
#pragma unroll
        for (uint n = 0; n < D / 8; n++) {
            *reinterpret_cast<float2*>(to + 8 * n + 2 * (lane % 4)) =
                make_float2(out[n][2 * half_row] / total[half_row], out[n][2 * half_row + 1] / total[half_row]);
        }
    }
}
