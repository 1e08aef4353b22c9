
// Element types of input and output: 0 float, 1 half, 2 bfloat.
constant uint X_TYPE [[function_constant(0)]];
constant uint Y_TYPE [[function_constant(1)]];

template <uint COUNT, typename X> inline void widen(device const uchar* bytes, uint valid, thread float* v) {
    device const X* x = (device const X*)bytes;
    for (uint i = 0; i < COUNT; i++) v[i] = i < valid ? float(x[i]) : 0.0f;
}

inline uint x_size() { return X_TYPE == 0 ? 4 : 2; }

// COUNT values of row i of a batch from l < k on, zero from k on. l is a multiple of COUNT, which divides 32.
template <uint COUNT>
inline void x_values(device const uchar* x, ulong batch, ulong i, uint l, constant MatmulArgs& args, thread float* v) {
    // Heads are multiples of 32 values: these never lie in two.
    device const uchar* bytes = args.head_dim == 0
        ? x + batch * args.x_batch + i * args.x_row + ulong(l) * x_size()
        : x + ((ulong(l / args.head_dim) * args.m + i) * args.head_dim + l % args.head_dim) * x_size();
    const uint valid = min(args.k - l, COUNT);
    if (X_TYPE == 0) widen<COUNT, float>(bytes, valid, v);
    else if (X_TYPE == 1) widen<COUNT, half>(bytes, valid, v);
    else widen<COUNT, bfloat>(bytes, valid, v);
}

inline void store_y(device uchar* y, ulong i, float value) {
    if (Y_TYPE == 0) ((device float*)y)[i] = value;
    else ((device bfloat*)y)[i] = bfloat(value);
}
