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

// A row's values of the units unit(i): a lane has four of every 128. Zeros behind its end.
template <int QUADS, class Unit> DI void fetch_units(float4 (&v)[QUADS], const float* row, u32 k, const Unit& unit) {
#pragma unroll
    for (int j = 0; j < QUADS; j++) {
        const u32 i = unit(j >> 1) * 256 + (j & 1) * 128 + 4 * (threadIdx.x & 31);
        v[j] = i < k ? *(const float4*)(row + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
}
// Multiplies them by `weight`. The sum of their squares before that.
template <int QUADS, class Unit> DI float norm_units(float4 (&v)[QUADS], const float* weight, u32 k, const Unit& unit, int counted) {
    float4 w[QUADS];
    float squares = 0.f;
    fetch_units(w, weight, k, unit);
#pragma unroll
    for (int j = 0; j < QUADS; j++) {
        float4& x = v[j];
        if (j < 2 * counted) squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
        x = make_float4(x.x * w[j].x, x.y * w[j].y, x.z * w[j].z, x.w * w[j].w);
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) squares += __shfl_xor_sync(~0u, squares, o);
    return squares;
}
// The largest magnitude of a warp's values.
template <int QUADS> DI float largest_of_units(const float4 (&v)[QUADS]) {
    float largest = 0.f;
#pragma unroll
    for (int j = 0; j < QUADS; j++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[j].x), fabsf(v[j].y)), fmaxf(fabsf(v[j].z), fabsf(v[j].w))));
#pragma unroll
    for (int o = 16; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
    return largest;
}

// A warp's operands for the units unit(i), i < KU, of up to 4 rows of x, or of one whose groups lie side by side. x(token) is the address of a row.
// With NORM, x's one row is multiplied by `weight`, and the result is the sum of its squares before that, of the first `counted` units.
template <class F, int KU, bool ONE, bool NORM, class Unit, class X>
DI float load_operands(u32 (&b)[KU][ONE ? 4 : 16][2], float (&inverse)[2], int m, u32 k, const float* weight, const Unit& unit, int counted, const X& x, u32 staging, u32 table) {
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
#pragma unroll
    for (int u = 0; u < KU; u++)
#pragma unroll
        for (int s = 0; s < (ONE ? 4 : 16); s++) b[u][s][0] = b[u][s][1] = 0;
    inverse[0] = inverse[1] = 0.f;
    fetch_units(next, x(0), k, unit);
    const float squares = NORM ? norm_units(next, weight, k, unit, counted) : 0.f;
#pragma unroll 1
    for (int token = 0; token < m; token++) {
#pragma unroll
        for (int j = 0; j < QUADS; j++) v[j] = next[j];
        if (token + 1 < m) fetch_units(next, x(token + 1), k, unit);
        float scale, back;
        power_of_two(largest_of_units(v), scale, back);
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

// The pair of halves (a, b) of two words that have two each: halves 0 and 1 of the first, 2 and 3 of the second.
DI constexpr u32 pick(int a, int b) { return (u32)(2 * a | (2 * a + 1) << 4 | 2 * b << 8 | (2 * b + 1) << 12); }
// A warp's share of shared memory for half a unit of eight rows of x as halves: a run of 16 values is 32 bytes, which the four lanes that have a row's read at once,
// and rows have their runs in different orders, so that four rows fall into different banks.
constexpr int HALF_UNIT = 128, COLUMN_STAGING = 8 * HALF_UNIT * 2;
DI constexpr u32 staged_run(int run, int row) { return (run ^ (row & 3)) * 32; }
// Lane t's operands of the half unit h from the halves of its row g, which begin at `row`.
template <class F> DI void staged_operands(u32 (&b)[16][2], u32 row, int g, int t, int h) {
    auto at = [&](int i) { return row + staged_run(i >> 4, g) + (i & 15) * 2; };
    if constexpr (F::PAIRED) { // eight neighbours of every 32
#pragma unroll
        for (int j = 0; j < HALF_UNIT / 32; j++) {
            // Two lanes have a run.
            const uint4 v = *(const uint4*)(smem + row + (t & 2 ? staged_run(2 * j + 1, g) : staged_run(2 * j, g)) + (t & 1) * 16);
            const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int e = 0; e < 8; e++) { // which of the eight are the halves of a register
                const int place = F::place(32 * j + e), other = e ^ 4;
                if ((place & 1) == 0) b[8 * h + (place >> 4)][place >> 1 & 1] = prmt(words[e >> 1], words[other >> 1], pick(e & 1, 2 + (other & 1)));
            }
        }
    } else {
#pragma unroll
        for (int j = 0; j < HALF_UNIT / 16; j++) {
            // A lane's four values begin so many before its fourth of a run of 16; what the first lane would have before the run is at the end of it, or a run earlier of 32.
            int early = 0;
#pragma unroll
            for (int e = 0; e < 4; e++) early += (F::place(16 * j + e) >> 2 & 3) == 1;
            const int step = F::place(16 * j + 4 - early) >> 4;
            const int end = F::place(16 * j + 16 - early) == 16 * step ? 16 * j + 16 - early : (j & ~1) * 16 + (16 * (j & 1) - early & 31);
            const u32 own = at(16 * j) + 8 * t, first = t ? own - 2 * early : at(end);
            u32 low, high; // the four in order
            if (early == 0) {
                const uint2 v = *(const uint2*)(smem + own);
                low = v.x, high = v.y;
            } else if (early == 1) {
                const uint2 v = *(const uint2*)(smem + own);
                const u32 before = *(const u16*)(smem + first);
                low = prmt(before, v.x, 0x5410), high = prmt(v.x, v.y, 0x5432);
            } else if (early == 2) {
                low = *(const u32*)(smem + first), high = *(const u32*)(smem + own);
            } else {
                const uint2 v = *(const uint2*)(smem + first - 2);
                const u32 last = *(const u16*)(smem + own);
                low = prmt(v.x, v.y, 0x5432), high = prmt(v.y, last, 0x5432);
            }
            int from[4]; // by place
#pragma unroll
            for (int e = 0; e < 4; e++) from[F::place(16 * j + 4 - early + e) & 3] = e;
            b[8 * h + step][0] = prmt(low, high, pick(from[0], from[1])), b[8 * h + step][1] = prmt(low, high, pick(from[2], from[3]));
        }
    }
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
// A warp's operands of five to eight rows of x, the first at `x`, for the units unit(i), i < KU; what undoes their scaling at `inverse`, for eight columns of each unit. Whole lines of
// rows are loaded, and pass through COLUMN_STAGING bytes at `staging` on their way to the lanes that multiply them.
template <class F, int KU, bool FOLD, class Unit>
DI void make_columns(u32 (&b)[KU][16][2], const float* x, u64 x_row, int m, int k, const Unit& unit, u32 staging, u32 table, u32 inverse) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int u = 1; u < KU; u++)
#pragma unroll
        for (int s = 0; s < 16; s++) b[u][s][0] = b[u][s][1] = 0;
#pragma unroll (F::ROLLED ? 1 : KU)
    for (int u = 0; u < KU; u++) { // the unit before moves to its place when the next one comes
        u32 made[16][2];
        float4 v[8][2];
        const int i = unit(u) * 256 + 4 * lane;
        const float* row = x + i;
#pragma unroll
        for (int r = 0; r < 8; r++, row += x_row)
#pragma unroll
            for (int h = 0; h < 2; h++) v[r][h] = r < m && i + HALF_UNIT * h < k ? *(const float4*)(row + HALF_UNIT * h) : make_float4(0.f, 0.f, 0.f, 0.f);
        float scales[8];
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float largest = 0.f, back;
#pragma unroll
            for (int h = 0; h < 2; h++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[r][h].x), fabsf(v[r][h].y)), fmaxf(fabsf(v[r][h].z), fabsf(v[r][h].w))));
            // Bits of magnitudes are ordered as these are.
            power_of_two(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest))), scales[r], back);
            if (lane == r) *(float*)(smem + inverse + 32 * u + 4 * r) = back * (1.f / F::QUANTUM); // a value of bits<0> is QUANTUM
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            __syncwarp();
#pragma unroll
            for (int r = 0; r < 8; r++) {
                const float scale = scales[r];
                *(uint2*)(smem + staging + 2 * HALF_UNIT * r + (8 * lane ^ staged_run(0, r))) =
                    make_uint2(pack_halves(v[r][h].x * scale, v[r][h].y * scale), pack_halves(v[r][h].z * scale, v[r][h].w * scale));
            }
            __syncwarp();
            staged_operands<F>(made, staging + 2 * HALF_UNIT * g, g, t, h);
        }
#pragma unroll
        for (int s = 0; s < 16; s++) // undoes the shift of the weights' integers
            if (F::shift(s)) {
                const u32 lower = (u32)(15 - F::shift(s)) * 0x04000400u;
                made[s][0] = hmul2(made[s][0], lower), made[s][1] = hmul2(made[s][1], lower);
            }
        if constexpr (F::OFFSET != 0 || F::MINIMUM) sum_operands<F, FOLD>(made, table + u * (256 / F::SUB) * 32);
#pragma unroll
        for (int w = 0; w < KU; w++)
#pragma unroll
            for (int s = 0; s < 16; s++)
#pragma unroll
                for (int e = 0; e < 2; e++) b[w][s][e] = w + 1 < KU ? b[(w + 1) % KU][s][e] : made[s][e];
    }
    __syncwarp();
}
