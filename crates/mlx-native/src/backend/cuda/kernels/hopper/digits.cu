// One row of x times weights as integers.
//
// Where a format has few bits, a word of four bytes that each have one value is made by one mask, two values of halves by another. So x becomes integers too: four signed digits of 8 bits,
// which an mma takes as four columns, exactly. A format's sixteen groups of 16 are eight pairs, a pair the 32 values of an mma; columns 0 to 3 have the digits of the first group of a pair and
// zeros for the second, columns 4 to 7 the other way round. So lanes 0 and 1 of four have the sums of the first, 2 and 3 those of the second, and a lane has two digits' sums. They are exact, and so
// are their products with the groups' integer scales.

// d += a b, of bytes: weights, which have no sign, and digits.
DI void mma(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

constexpr int DIGIT_PAIRS = 8;
// What the last digit of a row scaled by `power_of_two` stands for.
constexpr float LAST_DIGIT = 1.f / (1 << 20);

// load_operands for one row as digits: b[unit][pair] has a lane's digit of the pair's first group or of its second.
template <class F, int KU, bool NORM, class Unit>
DI float load_digits(u32 (&b)[KU][DIGIT_PAIRS][2], float& inverse, const float* row, u32 k, const float* weight, const Unit& unit, u32 staging, u32 table) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    float4 v[2 * KU];
    fetch_units(v, row, k, unit);
    const float squares = NORM ? norm_units(v, weight, k, unit, KU) : 0.f;
    float scale;
    power_of_two(largest_of_units(v), scale, inverse);
    // Where this lane's four values of every 128 go: neighbours stay neighbours.
    const int first = F::digit_place(4 * lane);
    bool finite = true;
    u32 digits[2 * KU][4];
#pragma unroll
    for (int j = 0; j < 2 * KU; j++) {
        float sum = 0.f;
        int left[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float value = (&v[j].x)[e] * scale;
            finite = finite && fabsf(value) <= 1024.f;
            left[e] = __float2int_rn(value * (1.f / LAST_DIGIT));
            sum += value;
        }
#pragma unroll
        for (int digit = 0; digit < 4; digit++) {
            digits[j][digit] = prmt(prmt(left[0], left[1], 0x0040), prmt(left[2], left[3], 0x0040), 0x5410);
#pragma unroll
            for (int e = 0; e < 4; e++) left[e] = (left[e] - (int)(signed char)left[e]) >> 8;
        }
        if constexpr (F::MINIMUM) {
            sum = sum_of_group<F, true>(sum);
            if ((lane & 3) == 0) *(float2*)(smem + table + (slot_of_group<F>(lane >> 2) + j * 8) * 32) = make_float2(sum, 0.f);
        } else {
#pragma unroll
            for (int digit = 0; digit < 4; digit++) { // what a lane's sums of a pair begin with
                int offset = __dp4a((int)digits[j][digit], 0x01010101, 0);
                offset += __shfl_xor_sync(~0u, offset, 1);
                offset += __shfl_xor_sync(~0u, offset, 2);
                offset *= F::digit_offset(first / 32);
                const u32 to = table + (j >> 1) * 512 + (first / 32) * 64 + (2 * (j & 1) + (digit >> 1)) * 16 + (digit & 1) * 4;
                if ((lane & 3) == 0) *(int*)(smem + to) = *(int*)(smem + to + 8) = offset;
            }
        }
    }
    if (!__all_sync(~0u, finite)) inverse = __uint_as_float(0x7fffffffu);
#pragma unroll
    for (int two = 0; two < 2; two++) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2 * KU; j++)
#pragma unroll
            for (int digit = 0; digit < 2; digit++) *(u32*)(smem + staging + (j >> 1) * 512 + digit * 256 + (j & 1) * 16 + first) = digits[j][2 * two + digit];
        __syncwarp();
        if ((g >> 1 & 1) == two) {
#pragma unroll
            for (int u = 0; u < KU; u++)
#pragma unroll
                for (int pair = 0; pair < DIGIT_PAIRS; pair++) {
                    const u32 own = *(const u32*)(smem + staging + u * 512 + (g & 1) * 256 + pair * 32 + (g >> 2) * 16 + 4 * t);
                    b[u][pair][0] = g < 4 ? own : 0, b[u][pair][1] = g < 4 ? 0 : own;
                }
        }
    }
    __syncwarp();
    return squares;
}

// multiply_spread for digits. `sums` is where a format without minimums has what its sums begin with.
template <class F, int SHIFT, class Fold>
DI void multiply_digits(const Row<SHIFT>& top, const Row<SHIFT>& bottom, int t, const u32 (&b)[DIGIT_PAIRS][2], u32 sums, const Fold& fold, float (&acc)[4]) {
    const auto own0 = F::own_digits(top, t >> 1), own1 = F::own_digits(bottom, t >> 1);
    u32 q0[DIGIT_PAIRS][2], q1[DIGIT_PAIRS][2];
    F::digits(top, t, q0), F::digits(bottom, t, q1);
    int total[4] = {0, 0, 0, 0};
#pragma unroll
    for (int pair = 0; pair < DIGIT_PAIRS; pair++) {
        int d[4] = {0, 0, 0, 0};
        if constexpr (!F::MINIMUM) {
            const int4 begin = *(const int4*)(smem + sums + pair * 64 + 16 * t);
            d[0] = begin.x, d[1] = begin.y, d[2] = begin.z, d[3] = begin.w;
        }
        mma(d, q0[pair][0], q1[pair][0], q0[pair][1], q1[pair][1], b[pair][0], b[pair][1]);
        const int s0 = F::digit_scale(own0, pair), s1 = F::digit_scale(own1, pair);
        // Later pairs have weights in higher bits.
        if (F::digit_raise(pair) > 1)
#pragma unroll
            for (int e = 0; e < 4; e++) total[e] *= F::digit_raise(pair);
        total[0] += s0 * d[0], total[1] += s0 * d[1], total[2] += s1 * d[2], total[3] += s1 * d[3];
    }
    // The digits that lanes with even t have, and those with odd t. A value of bits<0> would be QUANTUM.
    const float factor = LAST_DIGIT * F::QUANTUM * F::DIGIT_UNIT * (t & 1 ? 65536.f : 1.f), next = 256.f * factor;
    acc[0] = fmaf(low_half(own0.d), fmaf((float)total[1], next, (float)total[0] * factor), acc[0]);
    acc[2] = fmaf(low_half(own1.d), fmaf((float)total[3], next, (float)total[2] * factor), acc[2]);
    if constexpr (F::MINIMUM) {
        const typename F::Head none{};
        float low[4];
        u32 m0[2], m1[2];
        F::minimums(top, none, t, m0), F::minimums(bottom, none, t, m1);
        const uint4 s = fold();
        mma(low, m0[0], m1[0], m0[1], m1[1], s.x, s.y, 0.f, 0.f, 0.f, 0.f);
        mma(low, m0[0], m1[0], m0[1], m1[1], s.z, s.w, low[0], low[1], low[2], low[3]);
        acc[0] = fmaf(F::unit_minimum(own0) * F::QUANTUM, low[0], acc[0]), acc[2] = fmaf(F::unit_minimum(own1) * F::QUANTUM, low[2], acc[2]);
    }
}
