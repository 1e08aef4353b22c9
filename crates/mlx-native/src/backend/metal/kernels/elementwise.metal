
// A threadgroup of STEP threads covers SPAN elements: each thread takes those STEP apart, so that neighbours read neighbours.
constant uint SPAN = 1024;
constant uint STEP = 256;

template <typename From, typename To>
[[kernel]] void cast(device const From* x [[buffer(0)]], device To* y [[buffer(1)]], constant ElementArgs& args [[buffer(2)]],
                     uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    for (uint j = thread_index; j < SPAN; j += STEP) {
        const ulong i = ulong(group) * SPAN + j;
        // Between the 16-bit types through float, which holds both exactly: one rounding.
        if (i < args.len) y[i] = To(float(x[i]));
    }
}

struct Add {
    static float of(float a, float b) { return a + b; }
};

struct Mul {
    static float of(float a, float b) { return a * b; }
};

struct SiluMul {
    static float of(float a, float b) { return silu(a) * b; }
};

struct GeluMul {
    static float of(float a, float b) { return gelu_tanh(a) * b; }
};

template <typename F>
[[kernel]] void combine(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* y [[buffer(2)]],
                        constant ElementArgs& args [[buffer(3)]], uint group [[threadgroup_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]]) {
    for (uint j = thread_index; j < SPAN; j += STEP) {
        const ulong i = ulong(group) * SPAN + j;
        if (i < args.len) y[i] = F::of(a[i], b[args.b_len == args.len ? i : i % args.b_len]);
    }
}

[[kernel]] void soft_cap(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant ElementArgs& args [[buffer(2)]],
                         uint group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    for (uint j = thread_index; j < SPAN; j += STEP) {
        const ulong i = ulong(group) * SPAN + j;
        if (i < args.len) y[i] = args.cap * precise::tanh(x[i] / args.cap);
    }
}

// Heads [k / head_dim, m, head_dim] as rows [m, k]; dims are m, k, head_dim. Grid of 256 columns, rows.
[[kernel]] void widen_heads(device const bfloat* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint4& dims [[buffer(2)]],
                            uint2 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
    const uint l = group.x * 256 + thread_index, row = group.y;
    if (l < dims.y) y[ulong(row) * dims.y + l] = float(x[(ulong(l / dims.z) * dims.x + row) * dims.z + l % dims.z]);
}
