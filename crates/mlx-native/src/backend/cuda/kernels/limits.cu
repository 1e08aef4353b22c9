// What benchmarks compare with: loads alone, and operands for the vendor's products.

// Reads `count` times 16 bytes of every thread of the grid, neighbours side by side, eight loads under way at a time. Writes nothing unless their sum is what it
// cannot be: the compiler does not know.
template <int = 0>
__global__ void __launch_bounds__(512) read_all(const uint4* from, uint* never, uint rounds) {
    begin();
    constexpr uint EACH = 8;
    const uint4* at = from + ulong(blockIdx.x) * rounds * EACH * blockDim.x + threadIdx.x;
    uint sum = 0;
    for (uint round = 0; round < rounds; round++, at += EACH * blockDim.x) {
        uint4 values[EACH];
#pragma unroll
        for (uint i = 0; i < EACH; i++) values[i] = __ldcs(at + i * blockDim.x);
#pragma unroll
        for (uint i = 0; i < EACH; i++) sum |= values[i].x & values[i].y & values[i].z & values[i].w;
    }
    if (sum == ~0u) *never = sum;
}

// `pairs` pairs of halves that look like normal ones: sums of four bytes of a hash.
template <int = 0>
__global__ void __launch_bounds__(256) random_halves(uint* to, ulong pairs, uint seed) {
    begin();
    const ulong at = ulong(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= pairs) return;
    float values[2];
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        uint h = uint(2 * at + i) ^ seed * 0x9e3779b9u;
        h = (h ^ h >> 16) * 0x85ebca6bu;
        h = (h ^ h >> 13) * 0xc2b2ae35u;
        h ^= h >> 16;
        values[i] = (float(h & 255) + float(h >> 8 & 255) + float(h >> 16 & 255) + float(h >> 24) - 510.f) * (1.f / 148.f);
    }
    to[at] = pack_half2(values[0], values[1]);
}
