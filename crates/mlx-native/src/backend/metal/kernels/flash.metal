
// Attention over an f16 cache by simdgroup matrices. Eight rows at a time share what is read of the cache: a row is one of the query
// heads of a key head, of one token (row r of key head g is head g G + r % G of token r / G, G heads to a key head). A simdgroup
// takes 32 positions at a time and keeps, for its eight rows, the running maximum, the sum, and the weighted values, F matrices of
// them: heads of up to 8 F values, a multiple of 8. Queries are scaled to f16 row by row, probabilities are rounded to it.
//
// Without SPLIT the four simdgroups of a threadgroup have 32 rows; grid of 32 rows, key heads. With SPLIT they have the same eight rows
// and a quarter each of the positions of part group.z of args.parts; grid of eight rows, key heads, parts; what parts find goes to
// `found`, for flash_combine, unless there is only one.
template <uint F, bool SPLIT>
[[kernel, max_total_threads_per_threadgroup(128)]] void flash(device const float* q [[buffer(0)]], device const half* keys [[buffer(1)]], device const half* values [[buffer(2)]],
                      device float* y [[buffer(3)]], constant FlashArgs& args [[buffer(4)]], device float* found [[buffer(5)]],
                      uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float all_scores[4][8 * 32];
    threadgroup half all_weights[4][8 * 32];
    threadgroup half all_stages[4][64];
    threadgroup float all_rows[4][8];
    threadgroup float maxima[4][8];
    threadgroup float totals[4][8];
    threadgroup float* scores = all_scores[simdgroup];
    threadgroup half* weights = all_weights[simdgroup];
    threadgroup half* stage = all_stages[simdgroup];
    threadgroup float* of_row = all_rows[simdgroup];

    const uint dim = args.head_dim, matrices = dim / 8, heads = args.n_heads / args.n_kv_heads, rows = args.n_tokens * heads;
    const uint row0 = SPLIT ? 8 * group.x : 32 * group.x + 8 * simdgroup;
    const uint kv_head = group.y;
    const uint2 places = element_places(all_scores[0], thread_index);
    const uint2 element_row = places / 8;

    // Four lanes have a row: this lane's row, its token, and where its head begins.
    const uint r = lane / 4, part = lane % 4, row = row0 + r;
    const bool exists = row < rows;
    const uint token = exists ? row / heads : 0;
    const ulong head = (ulong(token) * args.n_heads + kv_head * heads + (exists ? row % heads : 0)) * dim;
    float largest_query = 0.0f;
    for (uint d = part; d < dim; d += 4) largest_query = max(largest_query, exists ? fabs(q[head + d]) : 0.0f);
    for (ushort step = 1; step < 4; step *= 2) largest_query = max(largest_query, simd_shuffle_xor(largest_query, step));
    const float2 query_scale = block_scale(largest_query);
    simdgroup_half8x8 query[F];
    UNROLL
    for (uint f = 0; f < F; f++) {
        if (f >= matrices) break;
        for (uint i = 0; i < 2; i++) {
            const uint d = 2 * part + i;
            stage[8 * r + d] = exists ? half(q[head + 8 * f + d] * query_scale.x) : half(0);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_load(query[f], stage, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    simdgroup_float8x8 sums[F];
    UNROLL
    for (uint f = 0; f < F; f++) sums[f] = make_filled_simdgroup_matrix<float, 8>(0.0f);

    // Positions of all rows of this simdgroup, and how many are stored.
    const uint stored = args.start + args.n_tokens;
    uint begin = 0, end = 0;
    if (row0 < rows) {
        const uint first_token = args.start + row0 / heads, last_token = args.start + (min(row0 + 8, rows) - 1) / heads;
        begin = first_token < args.window ? 0 : first_token - args.window + 1;
        end = last_token + 1;
    }
    if (SPLIT) {
        const uint parts = 4 * args.parts, span = ((end - begin + parts - 1) / parts + 7) / 8 * 8;
        begin = min(begin + (4 * group.z + simdgroup) * span, end);
        end = min(begin + span, end);
    }
    const ulong base = ulong(kv_head) * args.capacity;
    const uint last = args.start + token;
    float running = -INFINITY, total = 0.0f;
    for (uint p0 = begin; p0 < end; p0 += 32) {
        const uint count = min(end - p0, 32u);
        for (uint c = 0; c < 4; c++) {
            simdgroup_float8x8 score = make_filled_simdgroup_matrix<float, 8>(0.0f);
            if (8 * c < count) {
                // Where the cache ends within eight positions, its last eight.
                device const half* from = keys + (base + min(p0 + 8 * c, args.capacity - 8)) * dim;
                UNROLL
                for (uint f = 0; f < F; f++) {
                    if (f >= matrices) break;
                    simdgroup_half8x8 key;
                    simdgroup_load(key, from + 8 * f, dim, ulong2(0, 0), true);
                    simdgroup_multiply_accumulate(score, query[f], key, score);
                }
            }
            simdgroup_store(score, scores + 8 * c, 32);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        // This lane's eight scores of its row.
        const uint wanted = p0 + 8 * part, from = min(wanted, args.capacity - 8);
        float v[8];
        float next = running;
        for (uint i = 0; i < 8; i++) {
            const uint position = from + i;
            const bool sees = exists && position >= wanted && position < end && position <= last && last - position < args.window;
            float score = scores[32 * r + 8 * part + i] * query_scale.y * args.scale;
            if (args.soft_cap > 0.0f) score = args.soft_cap * precise::tanh(score / args.soft_cap);
            v[i] = sees ? score : -INFINITY;
            next = max(next, v[i]);
        }
        for (ushort step = 1; step < 4; step *= 2) next = max(next, simd_shuffle_xor(next, step));
        const float keep = next == -INFINITY ? 1.0f : precise::exp(running - next);
        float sum = 0.0f;
        for (uint i = 0; i < 8; i++) {
            const half weight = v[i] == -INFINITY ? half(0) : half(precise::exp(v[i] - next));
            weights[32 * r + 8 * part + i] = weight;
            sum += float(weight);
        }
        for (ushort step = 1; step < 4; step *= 2) sum += simd_shuffle_xor(sum, step);
        total = total * keep + sum;
        running = next;
        if (part == 0) of_row[r] = keep;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        const float2 factor = float2(of_row[element_row.x], of_row[element_row.y]);
        UNROLL
        for (uint f = 0; f < F; f++) {
            for (uint i = 0; i < 2; i++) sums[f].thread_elements()[i] *= factor[i];
        }
        for (uint c = 0; c < 4; c++) {
            if (8 * c >= count) break;
            simdgroup_half8x8 weight;
            simdgroup_load(weight, weights + 8 * c, 32);
            const uint at = min(p0 + 8 * c, args.capacity - 8);
            UNROLL
            for (uint f = 0; f < F; f++) {
                if (f >= matrices) break;
                simdgroup_half8x8 value;
                if (at + 8 <= stored) {
                    simdgroup_load(value, values + (base + at) * dim + 8 * f, dim);
                } else {
                    // What lies beyond the stored positions may be anything, and nothing times NaN is NaN.
                    for (uint e = lane; e < 64; e += 32) {
                        const uint position = at + e / 8;
                        stage[e] = position < stored ? values[(base + position) * dim + 8 * f + e % 8] : half(0);
                    }
                    simdgroup_barrier(mem_flags::mem_threadgroup);
                    simdgroup_load(value, stage, 8);
                    simdgroup_barrier(mem_flags::mem_threadgroup);
                }
                simdgroup_multiply_accumulate(sums[f], weight, value, sums[f]);
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    float all = running, weight = 1.0f;
    if (SPLIT) {
        // All four simdgroups relative to the largest of their maxima.
        if (part == 0) {
            maxima[simdgroup][r] = running;
            totals[simdgroup][r] = total;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint s = 0; s < 4; s++) all = max(all, maxima[s][r]);
        weight = running == -INFINITY ? 0.0f : precise::exp(running - all);
        total = 0.0f;
        for (uint s = 0; s < 4; s++) {
            if (maxima[s][r] != -INFINITY) total += totals[s][r] * precise::exp(maxima[s][r] - all);
        }
        if (args.parts > 1 && simdgroup == 0 && part == 0 && exists) {
            const ulong place = ((ulong(kv_head) * rows + row) * args.parts + group.z) * (dim + 2);
            found[place] = all;
            found[place + 1] = total;
        }
    }
    if (!SPLIT || args.parts == 1) weight = weight / total;
    if (part == 0) of_row[r] = weight;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const float2 factor = float2(of_row[element_row.x], of_row[element_row.y]);
    // Out 32 values of a row at a time.
    UNROLL
    for (uint f = 0; f < F; f += 4) {
        if (f >= matrices) break;
        for (uint c = 0; c < 4; c++) {
            if (f + c >= matrices) break;
            for (uint i = 0; i < 2; i++) sums[f + c].thread_elements()[i] *= factor[i];
            simdgroup_store(sums[f + c], scores + 8 * c, 32);
        }
        if (SPLIT) threadgroup_barrier(mem_flags::mem_threadgroup);
        else simdgroup_barrier(mem_flags::mem_threadgroup);
        const uint width = min(dim - 8 * f, 32u);
        for (uint e = SPLIT ? thread_index : lane; e < 256; e += SPLIT ? 128 : 32) {
            const uint out_row = row0 + e / 32, d = e % 32;
            if (out_row >= rows || d >= width) continue;
            float value = scores[e];
            if (SPLIT) value = all_scores[0][e] + all_scores[1][e] + all_scores[2][e] + all_scores[3][e];
            if (SPLIT && args.parts > 1) {
                found[((ulong(kv_head) * rows + out_row) * args.parts + group.z) * (dim + 2) + 2 + 8 * f + d] = value;
            } else {
                y[(ulong(out_row / heads) * args.n_heads + kv_head * heads + out_row % heads) * dim + 8 * f + d] = value;
            }
        }
        if (SPLIT) threadgroup_barrier(mem_flags::mem_threadgroup);
        else simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Adds up what the parts of a row found; grid of rows of all key heads.
[[kernel]] void flash_combine(device const float* found [[buffer(0)]], device float* y [[buffer(1)]],
                              constant FlashArgs& args [[buffer(2)]], uint group [[threadgroup_position_in_grid]],
                              uint thread_index [[thread_index_in_threadgroup]]) {
    const uint heads = args.n_heads / args.n_kv_heads, rows = args.n_tokens * heads;
    const uint kv_head = group / rows, row = group % rows, dim = args.head_dim;
    device const float* parts = found + ulong(group) * args.parts * (dim + 2);
    float largest = -INFINITY, total = 0.0f;
    for (uint p = 0; p < args.parts; p++) largest = max(largest, parts[p * (dim + 2)]);
    for (uint p = 0; p < args.parts; p++) {
        device const float* part = parts + p * (dim + 2);
        if (part[0] != -INFINITY) total += part[1] * precise::exp(part[0] - largest);
    }
    for (uint d = thread_index; d < dim; d += 128) {
        float sum = 0.0f;
        for (uint p = 0; p < args.parts; p++) {
            device const float* part = parts + p * (dim + 2);
            if (part[0] != -INFINITY) sum += part[2 + d] * precise::exp(part[0] - largest);
        }
        y[(ulong(row / heads) * args.n_heads + kv_head * heads + row % heads) * dim + d] = sum / total;
    }
}
