
// R input rows times the weight rows of a simdgroup. `lanes` lanes share a weight row, each taking every lanes-th chunk of sixteen
// values; a team of them has C weight rows at once, whose values are decoded once for all R input rows. A row of the result is
// the same sum in the same order for every R. Team `team` has columns first, first + teams, …; every lane gets its team's sums.
template <typename W, uint R, uint C>
inline void mat_vec_sums(thread const W& weight, device const uchar* x, constant MatmulArgs& args, ulong batch, uint x_row, uint rows,
                         uint first, uint lane, thread float (&sums)[C][R]) {
    const uint teams = 32 / args.lanes;
    for (uint j = 0; j < C; j++) {
        for (uint r = 0; r < R; r++) sums[j][r] = 0.0f;
    }
    const uint chunks = (args.k + 15) / 16;
    for (uint c = lane % args.lanes; c < chunks; c += args.lanes) {
        float w[C][16];
        for (uint j = 0; j < C; j++) weight.chunk(min(first + j * teams, args.n - 1), c, args.k, w[j]);
        for (uint r = 0; r < R; r++) {
            float v[16];
            x_values<16>(x, batch, x_row + min(r, rows - 1), 16 * c, args, v);
            for (uint j = 0; j < C; j++) {
                float sum = 0.0f;
                for (uint i = 0; i < 16; i++) sum += w[j][i] * v[i];
                sums[j][r] += sum;
            }
        }
    }
    for (uint j = 0; j < C; j++) {
        for (uint r = 0; r < R; r++) {
            for (uint step = args.lanes / 2; step > 0; step /= 2) sums[j][r] += simd_shuffle_xor(sums[j][r], ushort(step));
        }
    }
}

// The first column of a lane's team.
inline uint first_column(constant MatmulArgs& args, uint columns, uint simdgroup, uint lane) {
    return simdgroup * (32 / args.lanes * columns) + lane / args.lanes;
}

template <typename W, uint R, uint C>
inline void mat_vec(thread const W& weight, device const uchar* x, device uchar* y, constant MatmulArgs& args, ulong batch,
                    uint x_row, uint rows, ulong y_row, uint simdgroup, uint lane) {
    const uint first = first_column(args, C, simdgroup, lane);
    float sums[C][R];
    mat_vec_sums<W, R, C>(weight, x, args, batch, x_row, rows, first, lane, sums);
    for (uint j = 0; j < C; j++) {
        const uint column = first + j * (32 / args.lanes);
        for (uint r = 0; r < R; r++) {
            if (lane % args.lanes == 0 && column < args.n && r < rows) store_y(y, (y_row + r) * args.n + column, sums[j][r]);
        }
    }
}

// output[b][i][j]: two simdgroups a threadgroup; grid of columns, R rows, batches.
template <typename W, uint R, uint C>
[[kernel]] void mv(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                   device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                   constant MatmulArgs& args [[buffer(5)]], uint3 group [[threadgroup_position_in_grid]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    const uint row = group.y * R;
    mat_vec<W, R, C>(weight, x, y, args, group.z, row, min(args.m - row, R), ulong(group.z) * args.m + row,
                     group.x * 2 + simdgroup, lane);
}

// The same for one slot of a token, whose expert chooses the matrix; grid of columns, slots. An id that is no expert gives NaN.
template <typename W, uint C>
[[kernel]] void mv_id(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                      device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                      constant MatmulArgs& args [[buffer(5)]], device const uint* ids [[buffer(6)]],
                      device atomic_uint* fault [[buffer(7)]], uint3 group [[threadgroup_position_in_grid]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint slot = group.y, expert = ids[slot];
    if (expert >= args.n_experts) {
        const uint first = (group.x * 2 + simdgroup) * (32 / args.lanes * C);
        for (uint j = first + lane; j < min(first + 32 / args.lanes * C, args.n); j += 32) {
            store_y(y, ulong(slot) * args.n + j, NAN);
        }
        if (lane == 0) atomic_fetch_min_explicit(fault, slot, memory_order_relaxed);
        return;
    }
    const W weight(data, scales, biases, args, expert);
    mat_vec<W, 1, C>(weight, x, y, args, 0, slot / args.top_k, 1, slot, group.x * 2 + simdgroup, lane);
}

// output[t] = scale * weight[ids[t]], a thread for sixteen values; grid of chunks, ids.
template <typename W>
[[kernel]] void embedding(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                          device const uchar* biases [[buffer(2)]], device const uint* ids [[buffer(3)]],
                          device float* y [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                          device atomic_uint* fault [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
    const uint c = group.x * 64 + thread_index, token = group.y;
    if (c >= (args.k + 15) / 16) return;
    device float* out = y + ulong(token) * args.k + 16 * c;
    const uint count = min(args.k - 16 * c, 16u), id = ids[token];
    if (id >= args.n) {
        for (uint i = 0; i < count; i++) out[i] = NAN;
        if (c == 0) atomic_fetch_min_explicit(fault, token, memory_order_relaxed);
        return;
    }
    const W weight(data, scales, biases, args, 0);
    float v[16];
    weight.chunk(id, c, args.k, v);
    for (uint i = 0; i < 16; i++) {
        if (i < count) out[i] = args.scale * v[i];
    }
}

// output[b][i][j] = sum over l of x[b][i][l] weight[l][j], for the formats whose rows may run along n: a simdgroup makes sixteen
// columns of a row; grid of chunks of n, rows, batches.
template <typename W>
[[kernel]] void vm(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                   device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]], device uchar* y [[buffer(4)]],
                   constant MatmulArgs& args [[buffer(5)]], uint3 group [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]]) {
    const W weight(data, scales, biases, args, group.z / args.batch_ratio);
    float sums[16];
    for (uint i = 0; i < 16; i++) sums[i] = 0.0f;
    for (uint c = lane; c < (args.k + 15) / 16; c += 32) {
        float v[16];
        x_values<16>(x, group.z, group.y, 16 * c, args, v);
        for (uint l = 0; l < 16; l++) {
            if (16 * c + l >= args.k) break;
            float w[16];
            weight.chunk(16 * c + l, group.x, args.n, w);
            for (uint i = 0; i < 16; i++) sums[i] += v[l] * w[i];
        }
    }
    const ulong row = ulong(group.z) * args.m + group.y;
    for (uint i = 0; i < 16; i++) {
        const float sum = simd_sum(sums[i]);
        if (lane == i && 16 * group.x + i < args.n) store_y(y, row * args.n + 16 * group.x + i, sum);
    }
}

