// Operands of the tensor cores made from a few rows of x.

// The power of two that brings the largest magnitude of a row to [2^9, 2^10), so that neither halves nor sums of 32 of them overflow, and its inverse.
DI void power_of_two(float largest, float& scale, float& inverse) {
    int e = largest > 0.f && largest < 3.4e38f ? (int)(__float_as_uint(largest) >> 23 & 255) - 127 : 0;
    e = e < -110 ? -110 : e;
    scale = __uint_as_float((u32)(127 + 9 - e) << 23);
    inverse = __uint_as_float((u32)(127 - 9 + e) << 23);
}

// A group's sum of x, as the kernels use it, from each lane's sum over four values.
template <class F, bool FOLD> DI float sum_of_group(float sum) {
#pragma unroll
    for (int o = 1; o < F::SUB / 4; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
    return FOLD ? sum : sum * ((F::OFFSET ? -(float)F::OFFSET : 1.f) * F::QUANTUM);
}
// Where the sum is of the group that has a run of 16 values.
template <class F> DI constexpr int slot_of_group(int run) { return F::SUB == 16 ? plane_step(run) : run / (F::SUB / 16); }

// Makes each lane's right operand for the unit's minimums from its groups' sums for eight columns, in place: halves and what rounding left. For eight groups they are
// the halves of k of one mma, for sixteen two mmas.
template <class F> DI void fold_sums(u32 table) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    constexpr int PAIRS = F::SUB == 16 ? 2 : 1;
    u32 high[PAIRS], low[PAIRS];
    __syncwarp();
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
        const int first = PAIRS == 2 ? slot_of_group<F>(4 * t + p) : 2 * t, second = PAIRS == 2 ? slot_of_group<F>(4 * t + p + 2) : 2 * t + 1;
        const float a = *(const float*)(smem + table + first * 32 + 4 * g), b = *(const float*)(smem + table + second * 32 + 4 * g);
        high[p] = pack_halves(a, b);
        low[p] = pack_halves(a - low_half(high[p]), b - high_half(high[p]));
    }
    __syncwarp();
    if constexpr (PAIRS == 1) *(uint2*)(smem + table + 8 * (threadIdx.x & 31)) = make_uint2(high[0], low[0]);
    else *(uint4*)(smem + table + 16 * (threadIdx.x & 31)) = make_uint4(high[0], high[1], low[0], low[1]);
}

// A warp's operands for the units unit(i), i < KU, of up to 4 rows of x, or of one whose groups lie side by side. x(token) is the address of a row.
// With NORM, x's one row is multiplied by `weight`, and the result is the sum of its squares before that.
template <class F, int KU, bool ONE, bool NORM, class Unit, class X>
DI float load_operands(u32 (&b)[KU][ONE ? 4 : 16][2], float (&inverse)[2], int m, u32 k, const float* weight, const Unit& unit, const X& x, u32 staging, u32 table) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    constexpr int QUADS = 2 * KU;
    float4 v[QUADS], next[QUADS];
    // Where this lane's four values of every 128 go, and what undoes the shift of their integers: place(i + 128) = place(i) + 128.
    u32 to[4];
    float lower[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int place = F::place(4 * lane + e);
        to[e] = staging + place * 2;
        lower[e] = __uint_as_float((u32)(127 - F::shift(place >> 4)) << 23);
    }
    const u32 sum_to = table + slot_of_group<F>(lane >> 2) * 32;
    auto fetch = [&](int token) {
        const float* row = x(token);
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            const u32 i = unit(j >> 1) * 256 + (j & 1) * 128 + 4 * lane;
            next[j] = i < k ? *(const float4*)(row + i) : make_float4(0.f, 0.f, 0.f, 0.f);
        }
    };
#pragma unroll
    for (int u = 0; u < KU; u++)
#pragma unroll
        for (int s = 0; s < (ONE ? 4 : 16); s++) b[u][s][0] = b[u][s][1] = 0;
    inverse[0] = inverse[1] = 0.f;
    fetch(0);
    float squares = 0.f;
    if constexpr (NORM) {
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            const u32 i = unit(j >> 1) * 256 + (j & 1) * 128 + 4 * lane;
            const float4 w = i < k ? *(const float4*)(weight + i) : make_float4(0.f, 0.f, 0.f, 0.f);
            float4& x = next[j];
            squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
            x = make_float4(x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w);
        }
#pragma unroll
        for (int o = 16; o; o >>= 1) squares += __shfl_xor_sync(~0u, squares, o);
    }
#pragma unroll 1
    for (int token = 0; token < m; token++) {
        float largest = 0.f;
#pragma unroll
        for (int j = 0; j < QUADS; j++) v[j] = next[j];
        if (token + 1 < m) fetch(token + 1);
#pragma unroll
        for (int j = 0; j < QUADS; j++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[j].x), fabsf(v[j].y)), fmaxf(fabsf(v[j].z), fabsf(v[j].w))));
#pragma unroll
        for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
        float scale, back;
        power_of_two(largest, scale, back);
        if (ONE || t == token) inverse[0] = inverse[1] = back;
#pragma unroll
        for (int j = 0; j < QUADS; j++) v[j] = make_float4(v[j].x * scale, v[j].y * scale, v[j].z * scale, v[j].w * scale);
#pragma unroll 1
        for (int column = 2 * token; column < 2 * token + 2; column++) { // rounded, then what rounding left
            __syncwarp();
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                float* f = &v[j].x;
                float sum = 0.f;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float h = low_half(pack_halves(f[e], 0.f));
                    f[e] = fabsf(h) < 1e30f ? f[e] - h : 0.f;
                    sum += h;
                    *(u16*)(smem + to[e] + j * 256) = (u16)pack_halves(h * lower[e], 0.f);
                }
                if constexpr (F::OFFSET != 0 || F::MINIMUM) {
                    sum = sum_of_group<F, FOLDED<F, ONE ? ONE_ROW : FOUR_ROWS>>(sum);
                    if (lane % (F::SUB / 4) == 0) *(float*)(smem + sum_to + j * (128 / F::SUB) * 32 + column * 4) = sum;
                }
            }
            __syncwarp();
            if ((ONE ? g & 1 : g) == column) {
#pragma unroll
                for (int u = 0; u < KU; u++)
#pragma unroll
                    for (int s = 0; s < (ONE ? 4 : 16); s++) {
                        const int step = ONE ? own_step<F>(g >> 1, s) : s;
                        const uint2 pair = *(const uint2*)(smem + staging + u * 512 + step * 32 + t * 8);
                        b[u][s][0] = pair.x, b[u][s][1] = pair.y;
                    }
            }
        }
    }
    __syncwarp();
    return squares;
}

// What lane t of four has of a unit of a row, by step and place in it, as F::place has them; zeros beyond its first `valid` values.
template <class F> DI void load_unit(float (&f)[16][4], const float* from, int valid, int t) {
    const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
    if constexpr (F::PAIRED) { // eight neighbours of every 32
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float4* at = (const float4*)(from + 32 * j + 8 * t);
            const float4 v = 32 * j < valid ? at[0] : zeros, w = 32 * j < valid ? at[1] : zeros;
            const float values[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
            for (int e = 0; e < 8; e++) f[F::place(32 * j + e) >> 4][F::place(32 * j + e) & 3] = values[e];
        }
    } else {
#pragma unroll
        for (int j = 0; j < 16; j++) {
            // A lane's four values begin so many before its fourth of a run of 16; what the first lane would have before the run is at the end of it, or a run earlier of 32.
            int early = 0;
#pragma unroll
            for (int e = 0; e < 4; e++) early += (F::place(16 * j + e) >> 2 & 3) == 1;
            const int step = F::place(16 * j + 4 - early) >> 4;
            const int end = F::place(16 * j + 16 - early) == 16 * step ? 16 * j + 16 - early : (j & ~1) * 16 + (16 * (j & 1) - early & 31);
            const float *own = from + 16 * j + 4 * t, *first = t ? own - early : from + end;
            const bool there = 16 * j < valid;
            float values[4];
            if (early == 0 || early == 1) {
                const float4 v = there ? *(const float4*)own : zeros;
                const float before = there && early ? *first : 0.f;
                values[0] = early ? before : v.x, values[1] = early ? v.x : v.y, values[2] = early ? v.y : v.z, values[3] = early ? v.z : v.w;
            } else if (early == 2) {
                const float2 v = there ? *(const float2*)first : make_float2(0.f, 0.f), w = there ? *(const float2*)own : make_float2(0.f, 0.f);
                values[0] = v.x, values[1] = v.y, values[2] = w.x, values[3] = w.y;
            } else {
                const float4 v = there ? *(const float4*)(first - 1) : zeros;
                values[0] = v.y, values[1] = v.z, values[2] = v.w, values[3] = there ? *own : 0.f;
            }
#pragma unroll
            for (int e = 0; e < 4; e++) f[step][F::place(16 * j + 4 - early + e) & 3] = values[e];
        }
    }
}
// A unit of a row as halves, scaled by a power of two, whose inverse is the result.
template <class F> DI float convert_unit(u32 (&b)[16][2], const float* from, int valid, int t) {
    float f[16][4], largest = 0.f, scale, inverse;
    load_unit<F>(f, from, valid, t);
#pragma unroll
    for (int s = 0; s < 16; s++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(f[s][0]), fabsf(f[s][1])), fmaxf(fabsf(f[s][2]), fabsf(f[s][3]))));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    power_of_two(largest, scale, inverse);
#pragma unroll
    for (int s = 0; s < 16; s++) {
        const float lower = scale * __uint_as_float((u32)(127 - F::shift(s)) << 23); // undoes the shift of the weights' integers
        b[s][0] = pack_halves(f[s][0] * lower, f[s][1] * lower), b[s][1] = pack_halves(f[s][2] * lower, f[s][3] * lower);
    }
    return inverse;
}
// The sums of a unit's operands over its groups, for eight columns.
template <class F, bool FOLD> DI void sum_operands(const u32 (&b)[16][2], u32 table) {
    constexpr int STEPS = F::SUB / 16;
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const float factor = FOLD ? 1.f : (F::OFFSET ? -(float)F::OFFSET : 1.f) * F::QUANTUM;
#pragma unroll
    for (int group = 0; group < 16 / STEPS; group++) {
        float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
        for (int s = group * STEPS; s < (group + 1) * STEPS; s++) {
            const u32 raised = (u32)(15 + F::shift(s)) * 0x04000400u;
            mma(d, raised, raised, raised, raised, b[s][0], b[s][1], d[0], d[1], d[2], d[3]);
        }
        if (g == (group & 7)) *(float2*)(smem + table + 32 * group + 8 * t) = make_float2(d[0] * factor, d[1] * factor);
    }
}
// A warp's operands of five to eight rows of x for the units unit(i), i < KU, of lanes whose row begins at `x` and is `there`; what undoes their scaling at `inverse`, for
// eight columns of each unit.
template <class F, int KU, bool FOLD, class Unit> DI void make_columns(u32 (&b)[KU][16][2], const float* x, bool there, int k, const Unit& unit, u32 table, u32 inverse) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
    for (int u = 0; u < KU; u++) {
        const float undo = convert_unit<F>(b[u], x + unit(u) * 256, there ? k - unit(u) * 256 : 0, t) * (1.f / F::QUANTUM); // a value of bits<0> is QUANTUM
        if (t == 0) *(float*)(smem + inverse + 32 * u + 4 * g) = undo;
        if constexpr (F::OFFSET != 0 || F::MINIMUM) sum_operands<F, FOLD>(b[u], table + u * (256 / F::SUB) * 32);
    }
    __syncwarp();
}
