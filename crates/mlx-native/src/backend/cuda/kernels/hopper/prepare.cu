// What comes before the products of many rows: weights that start anywhere are moved apart, the input becomes halves.

// Weight rows of `bytes` bytes, one after the other from any address on, to rows of `pitch` bytes, a multiple of 16, with zeros behind each. A block takes one.
template <int = 0> __global__ void __launch_bounds__(128) hopper_align(const u8* weights, u8* to, u64 bytes, u64 pitch) {
    launch_dependents();
    wait_for_predecessor();
    const u8* row = weights + blockIdx.x * bytes;
    const int end = (int)bytes, past = (int)((u64)row & 3);
    const u32* words = (const u32*)(row - past);
    for (int i = 16 * threadIdx.x; i < (int)pitch; i += 16 * 128) {
        u32 w[5];
#pragma unroll
        for (int j = 0; j < 5; j++) w[j] = i + 4 * j - past < end ? words[i / 4 + j] : 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int left = end - i - 4 * j; // bytes of this word that belong to the row
            w[j] = funnel(w[j], w[j + 1], 8 * past) & (left >= 4 ? ~0u : left > 0 ? (1u << 8 * left) - 1 : 0);
        }
        *(uint4*)(to + blockIdx.x * pitch + i) = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

// Where a row of x is a column of tiles whose rows are TURNED: lane t of four then has the rows t and 4 + t of eight instead of 2 t and 2 t + 1.
DI u32 turned_column(u32 row) { return row & ~7u | row << 1 & 6 | row >> 2 & 1; }

// x f32 [m, k] -> halves in the order of F::place, scaled by a power of two per row, zero from k up to 256 units. One block a row, with 512 bytes of
// shared memory for each unit. With `places`, the row of a token goes to the places of its top_k slots; a slot that is nowhere has none.
template <class F> DI void prepare(const float* x, u16* to, float* inverse, const HopperTileArgs& a, const u32* places, u32 top_k) {
    const u32 k = a.k, units = a.units;
    constexpr int THREADS = 512, HELD = 8;
    launch_dependents();
    wait_for_predecessor();
    const float4* row = (const float4*)(x + (u64)blockIdx.x * a.x_row);
    auto place = [&](u32 i) { return places ? places[blockIdx.x * top_k + i] : a.turned ? turned_column(blockIdx.x) : blockIdx.x; };
    float4 v[HELD];
    auto load = [&](u32 base) {
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            const u32 i = base + j * THREADS + threadIdx.x;
            v[j] = 4 * i < k ? row[i] : make_float4(0.f, 0.f, 0.f, 0.f);
        }
    };
    float largest = 0.f;
    for (u32 base = 0; base < units * 64; base += HELD * THREADS) {
        load(base);
#pragma unroll
        for (int j = 0; j < HELD; j++) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[j].x), fabsf(v[j].y)), fmaxf(fabsf(v[j].z), fabsf(v[j].w))));
    }
    float scale, back;
    power_of_two(largest_of_block(largest), scale, back);
    // The references of a format with some leave a power of two.
    if constexpr (F::RANGED) back *= (float)(2 << F::HEADROOM);
    for (u32 slot = threadIdx.x; slot < top_k; slot += THREADS)
        if (place(slot) < a.m) inverse[place(slot)] = back / (float)(1 << F::LIFT);
    // A thread's four values have the same places in every unit it meets: lane t's e-th value is k = 2 t + e % 2 + 8 (e / 2) of its step.
    u32 at[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int p = F::place(4 * (threadIdx.x & 63) + e);
        at[e] = 2 * ((p & ~15) + (p >> 2 & 3) * 2 + (p & 1) + (p & 2) * 4);
    }
    for (u32 base = 0; base < units * 64; base += HELD * THREADS) {
        if (units * 64 > HELD * THREADS) load(base);
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            const u32 i = base + j * THREADS + threadIdx.x;
            if (i >= units * 64) break;
            const float f[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
            for (int e = 0; e < 4; e++) *(u16*)(smem + (i >> 6) * 512 + at[e]) = (u16)pack_halves(f[e] * scale, 0.f);
        }
    }
    __syncthreads();
    for (u32 slot = 0; slot < top_k; slot++) {
        const u32 at = place(slot);
        uint4* out = (uint4*)(to + (u64)at * units * 256);
        for (u32 i = threadIdx.x; i < units * 32 && at < a.m; i += THREADS) out[i] = *(const uint4*)(smem + i * 16);
    }
}
template <class F> __global__ void __launch_bounds__(512) hopper_prepare(const float* x, u16* to, float* inverse, const __grid_constant__ HopperTileArgs args) {
    prepare<F>(x, to, inverse, args, nullptr, 1);
}
template <class F>
__global__ void __launch_bounds__(512) hopper_prepare_id(const float* x, u16* to, float* inverse, const __grid_constant__ HopperTileArgs args, const u32* places, u32 top_k) {
    prepare<F>(x, to, inverse, args, places, top_k);
}
