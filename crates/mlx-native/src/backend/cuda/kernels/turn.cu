// Rotations, for the kernels that turn queries and keys.

// The fraction of a turn, about -1/2 to 1/2, that position * frequency leaves. The frequency, in turns, is a sum of two floats: a position of many
// thousand turns keeps its fraction to a few parts in 10^8.
inline float turn(float position, float2 frequency) {
    const float product = position * frequency.x;
    const float error = fmaf(position, frequency.x, -product);
    return (product - rintf(product)) + (error + position * frequency.y);
}

// The sine and the cosine that pair i turns by at a position.
inline void angle(uint position, const RopeArgs& args, const RopeTable& frequencies, const float* factors, uint i, float& sine, float& cosine) {
    const bool negative = args.positions_unsigned == 0 && position >> 31;
    const uint magnitude = negative ? 0 - position : position;
    float2 frequency = make_float2(frequencies.turns[i][0], frequencies.turns[i][1]);
    if (args.has_factors) {
        const float high = frequency.x / factors[i];
        frequency = make_float2(high, (fmaf(-high, factors[i], frequency.x) + frequency.y) / factors[i]);
    }
    // Two parts of the position that a float holds exactly.
    float t = turn(float(magnitude & 0xfff), frequency) + turn(float(magnitude & ~0xfffu), frequency);
    t -= rintf(t);
    sincospif(2.0f * (negative ? -t : t), &sine, &cosine);
}
// Where the two values of pair i are in a head.
inline uint2 pair_of(const RopeArgs& args, uint i) {
    const uint a = args.interleaved ? 2 * i : i;
    return make_uint2(a, a + (args.interleaved ? 1 : args.n_rot / 2));
}
// A pair, turned.
inline float2 turned(float u, float v, float sine, float cosine) { return make_float2(fmaf(u, cosine, -(v * sine)), fmaf(u, sine, v * cosine)); }
