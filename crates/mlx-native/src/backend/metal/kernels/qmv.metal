
// Affine rows of 4 or 8 bits in the order of accumulation that MLX has: two simdgroups with four weight rows each, a lane with VALUES
// neighbouring inputs of every step of 32 VALUES; a step adds scale * (sum of products) + bias * (sum of inputs) to the lane's sum, and
// the lanes' sums are added at the end. Sums of 4-bit codes go by fours. n is a multiple of 8, k of 32 VALUES, the group size of VALUES;
// grid of eights of columns, rows.
template <uint BITS, typename S, uint VALUES>
[[kernel]] void qmv(device const uchar* data [[buffer(0)]], device const S* scales [[buffer(1)]], device const S* biases [[buffer(2)]],
                    device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                    uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
    const uint PER_WORD = 32 / BITS;
    const uint first = (group.x * 2 + simdgroup) * 4;
    float sums[4];
    for (uint j = 0; j < 4; j++) sums[j] = 0.0f;
    for (uint l = lane * VALUES; l < args.k; l += 32 * VALUES) {
        float v[VALUES];
        x_values<VALUES>(x, 0, group.y, l, args, v);
        float inputs = 0.0f;
        for (uint i = 0; i < VALUES; i += BITS == 4 ? 4 : 1) {
            inputs += BITS == 4 ? v[i] + v[i + 1] + v[i + 2] + v[i + 3] : v[i];
        }
        for (uint j = 0; j < 4; j++) {
            device const uint* words = (device const uint*)(data + (first + j) * args.w_row) + l / PER_WORD;
            float products = 0.0f;
            for (uint w = 0; w < VALUES / PER_WORD; w++) {
                float p[PER_WORD];
                for (uint i = 0; i < PER_WORD; i++) {
                    p[i] = v[w * PER_WORD + i] * float((words[w] >> (BITS * i)) & ((1u << BITS) - 1));
                }
                for (uint i = 0; i < PER_WORD; i += BITS == 4 ? 4 : 1) {
                    products += BITS == 4 ? p[i] + p[i + 1] + p[i + 2] + p[i + 3] : p[i];
                }
            }
            const ulong at = ulong(first + j) * args.groups + l / args.group_size;
            sums[j] += float(scales[at]) * products + inputs * float(biases[at]);
        }
    }
    for (uint j = 0; j < 4; j++) {
        const float sum = simd_sum(sums[j]);
        if (lane == 0) store_y(y, ulong(group.y) * args.n + first + j, sum);
    }
}
