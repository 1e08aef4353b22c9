
// One list of slots for each expert, in ascending order, one list after the other: counts[e] slots of expert e. One threadgroup, whose
// simdgroups take turns with the experts. A slot whose id is no expert is in no list; its row becomes NaN.
[[kernel, max_total_threads_per_threadgroup(1024)]] void map_experts(
    device const uint* ids [[buffer(0)]], device uint* counts [[buffer(1)]], device uint* lists [[buffer(2)]],
    device float* y [[buffer(3)]], constant MatmulArgs& args [[buffer(4)]], device atomic_uint* fault [[buffer(5)]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint slots = args.m * args.top_k, simdgroups = threads / 32;
    for (uint expert = simdgroup; expert < args.n_experts; expert += simdgroups) {
        uint count = 0;
        for (uint slot = lane; slot < slots; slot += 32) count += ids[slot] == expert ? 1 : 0;
        count = simd_sum(count);
        if (lane == 0) counts[expert] = count;
    }
    threadgroup_barrier(mem_flags::mem_device);
    for (uint expert = simdgroup; expert < args.n_experts; expert += simdgroups) {
        uint at = 0;
        for (uint e = lane; e < expert; e += 32) at += counts[e];
        at = simd_sum(at);
        for (uint first = 0; first < slots; first += 32) {
            const uint slot = first + lane;
            const uint taken = slot < slots && ids[slot] == expert ? 1 : 0;
            const uint before = simd_prefix_exclusive_sum(taken);
            if (taken) lists[at + before] = slot;
            at += simd_sum(taken);
        }
    }
    for (uint slot = thread_index; slot < slots; slot += threads) {
        if (ids[slot] >= args.n_experts) {
            for (uint j = 0; j < args.n; j++) y[ulong(slot) * args.n + j] = NAN;
            atomic_fetch_min_explicit(fault, slot, memory_order_relaxed);
        }
    }
}
