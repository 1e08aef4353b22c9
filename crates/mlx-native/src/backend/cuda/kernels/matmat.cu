
// Many input rows, on the tensor cores: tiles of 128 weight rows (columns of the result) by TM input rows, 64 of k at a time, by eight
// warps of 32 weight rows and TM/2 input rows each.
//
// Weights are decoded once a tile into halves in shared memory. Each row's 64 values are scaled by the power of two that brings the
// largest to 2^14 or more and below 2^15, and what a tile step sums is scaled back as it is added to the accumulators: any magnitude of weights
// goes through with eleven bits. The next step's weights are decoded while this one's are multiplied. With SPLIT both
// operands are the sums of two halves, and high·high + high·low + low·high keeps some 21 bits.
static constexpr uint TN = 128;
static constexpr uint TK = 64;
// Halves from a row of a tile to the next: 9 times 16 bytes, so that eight rows lie in all banks.
static constexpr uint PITCH = TK + 8;
static constexpr uint THREADS = 256;

template <uint TM, bool SPLIT> struct Tiles {
    enum { OPERANDS = SPLIT ? 2 : 1, STAGES = SPLIT ? 2 : 3 };
    ushort weights[2][OPERANDS][TN][PITCH];
    ushort inputs[STAGES][OPERANDS][TM][PITCH];
    float scales[2][TN];
    float factors[TM];
    uint rows[TM];
};

// A chunk of a weight row as halves, times the power of two that is right for the row's 64 values, of which four neighbouring threads have
// a chunk each; gives its inverse.
template <bool SPLIT, typename W>
inline float decode_chunk(const W& weight, uint row, uint c, bool exists, const ProductArgs& args, ushort* high, ushort* low) {
    float v[16], largest = 0.0f;
    if (exists) {
        float scale, offset;
        weight.chunk(row, c, args.k, v, scale, offset);
#pragma unroll
        for (uint i = 0; i < 16; i++) v[i] = W::OFFSET ? fmaf(scale, v[i], offset) : scale * v[i];
    } else {
#pragma unroll
        for (uint i = 0; i < 16; i++) v[i] = 0.0f;
    }
#pragma unroll
    for (uint i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[i]));
    largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 2));
    int exponent = int(__float_as_uint(largest) >> 23) - 127;
    exponent = largest == 0.0f || exponent == 128 ? 14 : max(exponent, -100);
    const float scale = __uint_as_float(uint(127 + 14 - exponent) << 23);
#pragma unroll
    for (uint w = 0; w < 2; w++) {
        uint packed[4];
#pragma unroll
        for (uint i = 0; i < 4; i++) {
            float& a = v[8 * w + 2 * i];
            float& b = v[8 * w + 2 * i + 1];
            a *= scale;
            b *= scale;
            packed[i] = pack_half2(a, b);
            if (SPLIT) {
                a -= low_half(packed[i]);
                b -= high_half(packed[i]);
            }
        }
        reinterpret_cast<uint4*>(high)[w] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        if (SPLIT) {
#pragma unroll
            for (uint i = 0; i < 4; i++) packed[i] = pack_half2(v[8 * w + 2 * i], v[8 * w + 2 * i + 1]);
            reinterpret_cast<uint4*>(low)[w] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        }
    }
    return __uint_as_float(uint(127 - 14 + exponent) << 23);
}

// Tile row r is staged row tiles.rows[r] and goes to output row out(r); rows from `rows` on do not exist.
template <uint TM, bool SPLIT, typename W, typename Out>
inline void multiply_tile(const W& weight, const ushort* high, const ushort* low, const float* factors, uchar* y, const ProductArgs& args,
                          uint rows, uint column0, Tiles<TM, SPLIT>& tiles, Out out) {
    typedef Tiles<TM, SPLIT> T;
    constexpr uint WARP_M = TM / 2, MT = WARP_M / 8;
    const uint thread = threadIdx.x, lane = lane_index(), warp = warp_index();
    const uint warp_n = warp % 4 * 32, warp_m = warp / 4 * WARP_M;
    const uint steps = args.k_padded / TK;
    const auto load_inputs = [&](uint step) {
        if (step < steps) {
            const uint piece = 8 * (thread % 8);
#pragma unroll
            for (uint o = 0; o < T::OPERANDS; o++) {
                const ushort* source = (o == 0 ? high : low) + step * TK + piece;
#pragma unroll 1
                for (uint r = thread / 8; r < TM; r += THREADS / 8) {
                    copy_async(&tiles.inputs[step % T::STAGES][o][r][piece], source + ulong(tiles.rows[r]) * args.k_padded,
                               r < rows ? 16 : 0);
                }
            }
        }
        commit_copies();
    };
    const auto load_weights = [&](uint step) {
        if (step >= steps) return;
        const uint at = step % 2, chunk = thread % 4, c = 4 * step + chunk;
#pragma unroll
        for (uint pass = 0; pass < 2; pass++) {
            const uint row = TN / 2 * pass + thread / 4;
            const bool exists = column0 + row < args.n && 16 * c < args.k;
            const float scale = decode_chunk<SPLIT>(weight, column0 + row, c, exists, args, &tiles.weights[at][0][row][16 * chunk],
                                                    &tiles.weights[at][T::OPERANDS - 1][row][16 * chunk]);
            if (chunk == 0) tiles.scales[at][row] = scale;
        }
    };

    float sums[2][MT][4];
#pragma unroll
    for (uint i = 0; i < 2; i++) {
#pragma unroll
        for (uint j = 0; j < MT; j++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
        }
    }
    __syncthreads();
#pragma unroll
    for (uint s = 0; s < T::STAGES - 1; s++) load_inputs(s);
    load_weights(0);
    for (uint step = 0; step < steps; step++) {
        wait_copies<T::STAGES - 2>();
        __syncthreads();
        load_inputs(step + T::STAGES - 1);
        load_weights(step + 1);
        const uint at = step % 2, stage = step % T::STAGES;
        uint a[T::OPERANDS][2][4][4];
#pragma unroll
        for (uint o = 0; o < T::OPERANDS; o++) {
#pragma unroll
            for (uint i = 0; i < 2; i++) {
#pragma unroll
                for (uint l = 0; l < 4; l++) {
                    load_matrices(a[o][i][l], &tiles.weights[at][o][warp_n + 16 * i + lane % 16][16 * l + lane / 16 * 8]);
                }
            }
        }
        float scales[2][2];
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            scales[i][0] = tiles.scales[at][warp_n + 16 * i + lane / 4];
            scales[i][1] = tiles.scales[at][warp_n + 16 * i + lane / 4 + 8];
        }
#pragma unroll
        for (uint j = 0; j < MT; j++) {
            // Two of these are 32 values of eight input rows.
            uint b[T::OPERANDS][2][4];
#pragma unroll
            for (uint o = 0; o < T::OPERANDS; o++) {
#pragma unroll
                for (uint l = 0; l < 2; l++) {
                    load_matrices(b[o][l], &tiles.inputs[stage][o][warp_m + 8 * j + lane % 8][32 * l + lane / 8 * 8]);
                }
            }
#pragma unroll
            for (uint i = 0; i < 2; i++) {
                float step_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (uint l = 0; l < 4; l++) {
                    const uint b0 = 2 * (l % 2);
                    if constexpr (SPLIT) {
                        multiply_accumulate(step_sums, a[1][i][l], b[0][l / 2][b0], b[0][l / 2][b0 + 1]);
                        multiply_accumulate(step_sums, a[0][i][l], b[1][l / 2][b0], b[1][l / 2][b0 + 1]);
                    }
                    multiply_accumulate(step_sums, a[0][i][l], b[0][l / 2][b0], b[0][l / 2][b0 + 1]);
                }
#pragma unroll
                for (uint e = 0; e < 4; e++) sums[i][j][e] = fmaf(step_sums[e], scales[i][e / 2], sums[i][j][e]);
            }
        }
    }
#pragma unroll
    for (uint j = 0; j < MT; j++) {
#pragma unroll
        for (uint i = 0; i < 2; i++) {
#pragma unroll
            for (uint e = 0; e < 4; e++) {
                const uint r = warp_m + 8 * j + 2 * (lane % 4) + e % 2, column = column0 + warp_n + 16 * i + lane / 4 + 8 * (e / 2);
                if (r < rows && column < args.n) store_y(y, out(r) * args.n + column, sums[i][j][e] * tiles.factors[r], args);
            }
        }
    }
}

// output[b][i][j]; grid of row tiles, column tiles, batches: blocks that run at the same time share the weights.
template <typename W, uint TM, bool SPLIT>
__global__ void __launch_bounds__(THREADS, SPLIT ? 1 : 2)
    mm(const uchar* data, const uchar* scales, const uchar* biases, const ushort* high, const ushort* low, const float* factors, uchar* y,
       ProductArgs args) {
    begin();
    extern __shared__ uint4 memory[];
    Tiles<TM, SPLIT>& tiles = *reinterpret_cast<Tiles<TM, SPLIT>*>(memory);
    const uint row0 = blockIdx.x * TM, rows = min(args.m - row0, TM);
    const ulong first = ulong(blockIdx.z) * args.m + row0;
    for (uint r = threadIdx.x; r < TM; r += THREADS) {
        tiles.rows[r] = first + min(r, rows - 1);
        tiles.factors[r] = factors[first + min(r, rows - 1)];
    }
    const W weight(data, scales, biases, args, blockIdx.z / args.batch_ratio);
    multiply_tile<TM, SPLIT>(weight, high, low, factors, y, args, rows, blockIdx.y * TN, tiles, [&](uint r) { return first + r; });
}

// The tiles of map_experts; grid of column tiles, tiles of all lists. What the grid has beyond the lists' tiles ends at once.
template <typename W, uint TM, bool SPLIT>
__global__ void __launch_bounds__(THREADS, SPLIT ? 1 : 2)
    mm_id(const uchar* data, const uchar* scales, const uchar* biases, const ushort* high, const ushort* low, const float* factors, uchar* y,
          ProductArgs args, const uint* lists, const uint4* all_tiles) {
    begin();
    extern __shared__ uint4 memory[];
    Tiles<TM, SPLIT>& tiles = *reinterpret_cast<Tiles<TM, SPLIT>*>(memory);
    const uint4 tile = all_tiles[blockIdx.y];
    const uint rows = tile.z;
    if (rows == 0) return;
    const uint* slots = lists + tile.y;
    for (uint r = threadIdx.x; r < TM; r += THREADS) {
        tiles.rows[r] = slots[min(r, rows - 1)] / args.top_k;
        tiles.factors[r] = factors[slots[min(r, rows - 1)] / args.top_k];
    }
    const W weight(data, scales, biases, args, tile.x);
    multiply_tile<TM, SPLIT>(weight, high, low, factors, y, args, rows, blockIdx.x * TN, tiles, [&](uint r) { return ulong(slots[r]); });
}
