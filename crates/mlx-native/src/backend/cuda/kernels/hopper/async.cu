// Asynchronous copies, their barriers, and the order between dependent launches.

DI void barrier_init(u32 bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory"); }
DI void barrier_expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
DI void barrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DI void barrier_arrive_in_cluster(u32 bar, u32 rank) {
    asm volatile("{.reg .b32 r; mapa.shared::cluster.u32 r, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [r];}" ::"r"(bar), "r"(rank) : "memory");
}
DI void barrier_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred p;\nAGAIN_%=:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @p bra DONE_%=;\n bra AGAIN_%=;\nDONE_%=:\n}" ::"r"(bar), "r"(parity)
        : "memory");
}
// Every thread of the cluster arrives, a warp's together; initialised barriers, but not other memory, are seen by who has waited for all.
DI void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DI void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Makes initialised barriers visible to the cluster and to the copy engine.
DI void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
}
// Orders ordinary accesses to shared memory before the copy engine's.
DI void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same for all memory, in both directions.
DI void memory_fence() {
    asm volatile("fence.proxy.async;" ::: "memory");
    __threadfence();
}
// barriers_ready where only the block's own threads and copies come to them, without a fence of all memory.
DI void block_barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    proxy_fence();
}
DI void raise_flag(u32* flag) { asm volatile("st.release.gpu.b32 [%0], %1;" ::"l"(flag), "r"(1) : "memory"); }
// How often a thread looks for other blocks before it gives up: seconds, where a product takes microseconds.
constexpr u32 MOST_LOOKS = 1 << 24;
// Waits until a counter in memory has come so far. In one piece: as a loop of C it takes registers that who sends sums off has not.
DI void wait_for_count(const u32* counter, u32 target) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .u32 seen, looks;\n mov.u32 looks, 0;\nAGAIN_%=:\n ld.acquire.gpu.global.u32 seen, [%0];\n setp.ge.u32 p, seen, %1;\n @p bra DONE_%=;\n"
        " add.u32 looks, looks, 1;\n setp.lt.u32 p, looks, %2;\n @p bra AGAIN_%=;\n trap;\nDONE_%=:\n}" ::"l"(counter), "r"(target), "n"(MOST_LOOKS)
        : "memory");
}
DI void wait_for_flag(const u32* flag) { wait_for_count(flag, 1); }
// Named barriers: `sync` waits until so many threads have come, `arrive` does not; a warp comes as one.
DI void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
template <int ID, int THREADS> DI void named_sync() { asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory"); }
template <int ID, int THREADS> DI void named_arrive() { asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory"); }

DI u64 evict_first_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DI u64 evict_last_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// `bytes`, the source and the destination are multiples of 16.
DI void bulk_copy(u32 to, const void* from, u32 bytes, u32 bar, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}
struct __align__(64) TensorMap { u64 words[16]; };
// Into L2 alone; `from` and `bytes` are multiples of 16.
DI void prefetch_bulk(const void* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes)); }
DI void prefetch_box(const TensorMap* map, u32 x, u32 y) { asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory"); }
DI void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
DI void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
DI void tile_copy(u32 to, const TensorMap* map, int x, int y, u32 bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(bar) : "memory");
}
DI void tile_copy(u32 to, const TensorMap* map, int x, int y, int z, u32 bar) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(bar) : "memory");
}
DI void tile_multicast(u32 to, const TensorMap* map, int x, int y, u32 bar, u16 ranks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(x), "r"(y),
                 "r"(bar), "h"(ranks)
                 : "memory");
}
// Copies from shared memory, in groups that the thread commits and waits for.
DI void tile_store(const TensorMap* map, int x, int y, int z, u32 from) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(x), "r"(y), "r"(z), "r"(from) : "memory");
}
DI void bulk_store(void* to, u32 from, u32 bytes, u64 policy) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(to), "r"(from), "r"(bytes), "l"(policy) : "memory");
}
DI void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All but the PENDING last groups have left shared memory.
template <int PENDING> DI void stores_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
// All groups are in memory.
DI void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Programmatic dependent launch: let the next kernel start; wait until the kernel before has finished.
DI void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DI void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
