
// One list of slots for each expert, in ascending order, one list after the other: counts[e] slots of expert e. One threadgroup. A
// slot whose id is no expert is in no list; its row becomes NaN.
[[kernel]] void map_experts(device const uint* ids [[buffer(0)]], device uint* counts [[buffer(1)]], device uint* lists [[buffer(2)]],
                            device float* y [[buffer(3)]], constant MatmulArgs& args [[buffer(4)]],
                            device atomic_uint* fault [[buffer(5)]], uint thread_index [[thread_index_in_threadgroup]],
                            uint threads [[threads_per_threadgroup]]) {
    const uint slots = args.m * args.top_k;
    for (uint expert = thread_index; expert < args.n_experts; expert += threads) {
        uint count = 0;
        for (uint slot = 0; slot < slots; slot++) count += ids[slot] == expert ? 1 : 0;
        counts[expert] = count;
    }
    threadgroup_barrier(mem_flags::mem_device);
    for (uint expert = thread_index; expert < args.n_experts; expert += threads) {
        uint at = 0;
        for (uint e = 0; e < expert; e++) at += counts[e];
        for (uint slot = 0; slot < slots; slot++) {
            if (ids[slot] == expert) lists[at++] = slot;
        }
    }
    for (uint slot = thread_index; slot < slots; slot += threads) {
        if (ids[slot] >= args.n_experts) {
            for (uint j = 0; j < args.n; j++) y[ulong(slot) * args.n + j] = NAN;
            atomic_fetch_min_explicit(fault, slot, memory_order_relaxed);
        }
    }
}

