// The operands that a warp of hopper_layer multiplies by.

// Whether a format only moves values within their quads.
template <class F> DI constexpr bool keeps_quads() {
    for (int i = 0; i < 256; i++)
        if ((F::place(i) ^ i) & ~3) return false;
    return true;
}
DI float4 plus(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }
DI float4 times(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }
DI float largest_of(float4 x) { return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))); }
DI float squares_of(float4 x) { return fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, x.w * x.w))); }

// A warp's operands for its unit of a product's input, times the norm's weights; zeros where it has none (`works`). `inverse` undoes their scaling; gives the sum of the input's
// squares. `table` is where sums of x go, `ready` waits for the input.
template <class F, class Ready>
DI float layer_operands(u32 (&b)[4][2], float& inverse, const LayerProduct& p, u32 unit, bool works, u32 staging, u32 table, const Ready& ready) {
    constexpr bool DIRECT = keeps_quads<F>();
    constexpr int QUADS = DIRECT ? 4 : 2, STEPS = F::SUB / 16;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    // The lane's quads: those of its operands, which another lane has too, or, where values move, every 32nd.
    u32 quads[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) quads[i] = (works ? unit * 256 : 0) + (DIRECT ? 16 * own_step<F>(g >> 1, i) + 4 * t : 128 * i + 4 * lane);
    float4 v[QUADS], w[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) w[i] = p.norm ? *(const float4*)(p.norm + quads[i]) : make_float4(1.f, 1.f, 1.f, 1.f);
    ready();
#pragma unroll
    for (int i = 0; i < QUADS; i++) v[i] = __ldcg((const float4*)(p.x + quads[i]));
    if (p.a.parts > 0) {
        float4 sum[QUADS], more[2][QUADS];
        for (int part = 0; part < p.a.parts; part += 2) {
#pragma unroll
            for (int j = 0; j < 2; j++) // a slice that is not there is read again
#pragma unroll
                for (int i = 0; i < QUADS; i++) more[j][i] = __ldcg((const float4*)(p.parts + min(part + j, p.a.parts - 1) * p.a.k + quads[i]));
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < QUADS; i++)
                    if (part + j < p.a.parts) sum[i] = part + j ? plus(sum[i], more[j][i]) : more[j][i];
        }
#pragma unroll
        for (int i = 0; i < QUADS; i++) v[i] = plus(v[i], sum[i]);
    }
    float squares = 0.f, largest = 0.f, scale;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        squares += squares_of(v[i]), v[i] = times(v[i], w[i]);
        largest = fmaxf(largest, largest_of(v[i]));
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o)), squares += __shfl_xor_sync(~0u, squares, o);
    squares = works ? DIRECT ? squares * 0.5f : squares : 0.f;
    power_of_two(largest, scale, inverse);
    inverse *= 1.f / F::QUANTUM;
    if (!works) scale = 0.f;
    if constexpr (!DIRECT) {
        u32 to[4];
#pragma unroll
        for (int e = 0; e < 4; e++) to[e] = staging + 4 * F::place(4 * lane + e);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2; j++) { // place(i + 128) = place(i) + 128
            *(float*)(smem + to[0] + 512 * j) = v[j].x, *(float*)(smem + to[1] + 512 * j) = v[j].y;
            *(float*)(smem + to[2] + 512 * j) = v[j].z, *(float*)(smem + to[3] + 512 * j) = v[j].w;
        }
        __syncwarp();
    }
    const float rest = g & 1 ? 1.f : 0.f; // whether a lane has what rounding leaves
#pragma unroll
    for (int i = 0; i < 4 / STEPS; i++) {
        float sum = 0.f;
#pragma unroll
        for (int s = i * STEPS; s < (i + 1) * STEPS; s++) {
            const int step = own_step<F>(g >> 1, s);
            const float4 q = DIRECT ? v[s] : *(const float4*)(smem + staging + 64 * step + 16 * t);
            float f[4];
            if constexpr (DIRECT) f[F::place(0) & 3] = q.x, f[F::place(1) & 3] = q.y, f[F::place(2) & 3] = q.z, f[F::place(3) & 3] = q.w;
            else f[0] = q.x, f[1] = q.y, f[2] = q.z, f[3] = q.w;
            const float lower = __uint_as_float((u32)(127 - F::shift(step)) << 23);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float all = f[e] * scale, high = low_half(pack_halves(all, 0.f)), h = low_half(pack_halves(fmaf(-rest, high, all), 0.f));
                sum += h, f[e] = h * lower;
            }
            b[s][0] = pack_halves(f[0], f[1]), b[s][1] = pack_halves(f[2], f[3]);
        }
        if constexpr (F::OFFSET != 0 || F::MINIMUM) {
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const int group = 4 * i + (g >> 1), column = g & 1;
            if constexpr (FOLDED<F, ONE_ROW>) {
                if (t == 0) *(float*)(smem + table + group * 32 + column * 4) = sum;
            } else if (t == 0)
                *(float*)(smem + table + group * 8 + column * 4) = sum * ((F::OFFSET ? -(float)F::OFFSET : 1.f) * F::QUANTUM);
        }
    }
    if constexpr (FOLDED<F, ONE_ROW>) fold_sums<F>(table);
    __syncwarp();
    return squares;
}
