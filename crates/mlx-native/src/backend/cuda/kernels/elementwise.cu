
// A thread an element, a block of STEP.
static constexpr uint STEP = 256;

template <typename From, typename To>
__global__ void __launch_bounds__(STEP) cast(const From* x, To* y, ElementArgs args) {
    begin();
    const ulong i = ulong(blockIdx.x) * STEP + threadIdx.x;
    // Between the 16-bit types through float, which holds both exactly: one rounding.
    if (i < args.len) y[i] = To(float(x[i]));
}

struct Add {
    static float of(float a, float b) { return a + b; }
};

struct Mul {
    static float of(float a, float b) { return a * b; }
};

struct SiluMul {
    static float of(float a, float b) { return a / (1.0f + expf(-a)) * b; }
};

struct GeluMul {
    static float of(float a, float b) {
        // sqrt(2 / pi)
        const float inner = 0.7978845608f * (a + 0.044715f * a * a * a);
        return 0.5f * a * (1.0f + tanhf(inner)) * b;
    }
};

template <typename F> __global__ void __launch_bounds__(STEP) combine(const float* a, const float* b, float* y, ElementArgs args) {
    begin();
    const ulong i = ulong(blockIdx.x) * STEP + threadIdx.x;
    if (i < args.len) y[i] = F::of(a[i], b[args.b_len == args.len ? i : i % args.b_len]);
}

// The same by fours, for operands of one length, a multiple of 4, that start at multiples of 16 bytes.
template <typename F>
__global__ void __launch_bounds__(STEP) combine_quads(const float4* a, const float4* b, float4* y, ElementArgs args) {
    begin();
    const ulong i = ulong(blockIdx.x) * STEP + threadIdx.x;
    if (i >= args.len / 4) return;
    const float4 p = a[i], q = b[i];
    y[i] = make_float4(F::of(p.x, q.x), F::of(p.y, q.y), F::of(p.z, q.z), F::of(p.w, q.w));
}

template <int = 0>
__global__ void __launch_bounds__(STEP) soft_cap(const float* x, float* y, ElementArgs args) {
    begin();
    const ulong i = ulong(blockIdx.x) * STEP + threadIdx.x;
    if (i < args.len) y[i] = args.cap * tanhf(x[i] / args.cap);
}
