
// The fraction of a turn, about -1/2 to 1/2, that position * frequency / factor leaves. The frequency, in turns, is a sum of two
// floats, and so is its quotient: a position of many thousand turns keeps its fraction to a few parts in 10^8.
inline float turn(float position, float2 frequency, float factor) {
    const float high = frequency.x / factor;
    const float low = (fmaf(-high, factor, frequency.x) + frequency.y) / factor;
    const float product = position * high;
    const float error = fmaf(position, high, -product);
    return (product - rintf(product)) + (error + position * low);
}

// Turns pairs of values, a thread a pair or a value that does not turn; y may be x.
template <int = 0>
__global__ void __launch_bounds__(256) rope(const float* x, const uint* positions, float* y, RopeArgs args,
                                            __grid_constant__ const RopeTable frequencies, const float* factors) {
    begin();
    const ulong index = ulong(blockIdx.x) * 256 + threadIdx.x;
    if (index >= args.len) return;
    const uint pairs = args.n_rot / 2, per_head = args.head_dim - pairs;
    // Tokens times heads fit 32 bits: one division of 64 bits, which are slow.
    const uint row = uint(index / per_head), i = uint(index - ulong(row) * per_head);
    const ulong head = ulong(row) * args.head_dim;
    if (i >= pairs) {
        y[head + pairs + i] = x[head + pairs + i];
        return;
    }
    const uint position = positions[row / args.n_heads];
    const bool negative = args.positions_unsigned == 0 && position >> 31;
    const uint magnitude = negative ? 0 - position : position;
    const float factor = args.has_factors ? factors[i] : 1.0f;
    const float2 frequency = make_float2(frequencies.turns[i][0], frequencies.turns[i][1]);
    // Two parts of the position that a float holds exactly.
    float t = turn(float(magnitude & 0xfff), frequency, factor) + turn(float(magnitude & ~0xfffu), frequency, factor);
    t -= rintf(t);
    float sine, cosine;
    sincospif(2.0f * (negative ? -t : t), &sine, &cosine);
    const ulong a = head + (args.interleaved ? 2 * i : i), b = a + (args.interleaved ? 1 : pairs);
    const float u = x[a], v = x[b];
    y[a] = fmaf(u, cosine, -(v * sine));
    y[b] = fmaf(u, sine, v * cosine);
}
