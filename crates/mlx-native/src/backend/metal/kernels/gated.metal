
// 0 SiLU, 1 GELU by tanh.
constant uint ACTIVATION [[function_constant(2)]];

// Two products of the same rows, and the activation of the one times the other: gate[i][j] = f(gate) up, up[i][j] as it is. Each product is
// the sum that mv makes; grid of columns, R rows.
template <typename W, uint R, uint C>
[[kernel]] void mv_gated(device const uchar* data [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                         device const uchar* biases [[buffer(2)]], device const uchar* x [[buffer(3)]],
                         device float* gate [[buffer(4)]], constant MatmulArgs& args [[buffer(5)]],
                         device const uchar* up_data [[buffer(6)]], device const uchar* up_scales [[buffer(7)]],
                         device const uchar* up_biases [[buffer(8)]], device float* up [[buffer(9)]],
                         uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
    const uint row = group.y * R, rows = min(args.m - row, R), first = first_column(args, C, group.x * 2 + simdgroup, lane);
    float gates[C][R], ups[C][R];
    const W gate_weight(data, scales, biases, args, 0);
    mat_vec_sums<W, R, C>(gate_weight, x, args, 0, row, rows, first, lane, gates);
    const W up_weight(up_data, up_scales, up_biases, args, 0);
    mat_vec_sums<W, R, C>(up_weight, x, args, 0, row, rows, first, lane, ups);
    for (uint j = 0; j < C; j++) {
        const uint column = first + j * (32 / args.lanes);
        for (uint r = 0; r < R; r++) {
            if (lane % args.lanes != 0 || column >= args.n || r >= rows) continue;
            const ulong at = ulong(row + r) * args.n + column;
            gate[at] = (ACTIVATION == 0 ? silu(gates[j][r]) : gelu_tanh(gates[j][r])) * ups[j][r];
            up[at] = ups[j][r];
        }
    }
}
