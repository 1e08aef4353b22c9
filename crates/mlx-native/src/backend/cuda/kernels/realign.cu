
// Copies `args.len` matrices of `args.bytes` bytes, `args.stride` bytes apart at any address, to `args.pitch` bytes apart, a multiple of 16: for
// operands that lie where a kernel's loads may not. Grid of pieces of 4096 bytes, matrices.
template <int = 0>
__global__ void __launch_bounds__(256) realign(const uchar* source, uchar* target, RealignArgs args) {
    begin();
    const uchar* from = source + blockIdx.y * args.stride;
    uchar* to = target + blockIdx.y * args.pitch;
    for (uint i = 0; i < 16; i++) {
        const ulong at = ulong(blockIdx.x) * 4096 + i * 256 + threadIdx.x;
        if (at < args.bytes) to[at] = from[at];
    }
}
