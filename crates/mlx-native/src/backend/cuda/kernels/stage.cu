
// Element types of an input.
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 2 };

// Value l < k of row i of a batch, 0 from k on.
inline float load_x(const uchar* x, ulong batch, ulong i, uint l, const ProductArgs& args) {
    if (l >= args.k) return 0.0f;
    const uint size = args.x_type == TYPE_F32 ? 4 : 2;
    const uchar* at = args.head_dim == 0 ? x + batch * args.x_batch + i * args.x_row + ulong(l) * size
                                         : x + ((ulong(l / args.head_dim) * args.m + i) * args.head_dim + l % args.head_dim) * size;
    if (args.x_type == TYPE_F32) return *reinterpret_cast<const float*>(at);
    if (args.x_type == TYPE_F16) return *reinterpret_cast<const half*>(at);
    return *reinterpret_cast<const bfloat*>(at);
}

// The input of the row kernels, where it is not already so: f32, rows of whole chunks, zero from k to k_padded. A block a row; grid of rows
// of all batches.
template <int = 0> __global__ void __launch_bounds__(256) widen(const uchar* x, float* y, ProductArgs args) {
    begin();
    const ulong batch = blockIdx.x / args.m, i = blockIdx.x % args.m;
    for (uint l = threadIdx.x; l < args.k_padded; l += 256) y[ulong(blockIdx.x) * args.k_padded + l] = load_x(x, batch, i, l, args);
}

// The input of the tile kernels: rows of halves, each times the power of two that brings its largest value to 2^14 or more and below 2^15,
// so that no magnitude leaves the range of a half; zero from k to k_padded, a multiple of 64. With SPLIT a second array takes what
// rounding left. A block a row; grid of rows of all batches.
template <bool SPLIT>
__global__ void __launch_bounds__(256) stage(const uchar* x, uint* high, uint* low, float* factors, ProductArgs args) {
    begin();
    __shared__ float shared[32];
    const ulong batch = blockIdx.x / args.m, i = blockIdx.x % args.m;
    const auto value = [&](uint l) { return load_x(x, batch, i, l, args); };
    float largest = 0.0f;
    for (uint l = threadIdx.x; l < args.k; l += 256) largest = fmaxf(largest, fabsf(value(l)));
    largest = block_max(largest, shared);
    // Rows of zeros, and rows with an infinity, stay as they are; -100 keeps the inverse a normal number.
    int exponent = int(__float_as_uint(largest) >> 23) - 127;
    exponent = largest == 0.0f || exponent == 128 ? 14 : max(exponent, -100);
    const float scale = __uint_as_float(uint(127 + 14 - exponent) << 23);
    if (threadIdx.x == 0) factors[blockIdx.x] = __uint_as_float(uint(127 - 14 + exponent) << 23);
    const ulong words = args.k_padded / 2;
    for (uint w = threadIdx.x; w < words; w += 256) {
        const float a = value(2 * w) * scale, b = value(2 * w + 1) * scale;
        const uint packed = pack_half2(a, b);
        high[blockIdx.x * words + w] = packed;
        if (SPLIT) low[blockIdx.x * words + w] = pack_half2(a - low_half(packed), b - high_half(packed));
    }
}
