// What the warps of hopper_layer share: the products, counters between blocks, shared memory and places in it.

constexpr int PHASES = 4, MOST_SLOTS = 24, LAYER_SUMS = 3, LAYER_NORMS = 2;
// Slots that are on their way at once: more would delay everything else that blocks ask of memory, and what they tell each other.
constexpr int IN_FLIGHT = 3;
// Counters: groups of rows that are done, with the shares of the normed row, for each product but the last; blocks that have read the last one's input; warps that are done.
// Zero before and after a launch, a line each.
enum Counts { LOADED = PHASES - 1, ENDED, COUNTS };
__device__ u32 layer_counts[COUNTS][32];

// What becomes of the sums of a product: outputs of up to three matrices; output and residual + output; output, and the activation of the first
// times it; or a slice's share, kept apart.
enum Becomes { OUTPUTS, RESIDUAL, GATED, SLICES };
struct LayerProduct {
    // The input is x + the sum of what `slices` slices of the product before have; that sum goes to `joined`, and x + it to `sums`.
    const float *x, *parts;
    float* joined;
    const float* norm; // null for none
    float *normed, *outputs[3];
    const float* residual;
    float* sums;
    HopperProductArgs a;
};
struct LayerProducts { LayerProduct at[PHASES]; };

// Raises a counter after this thread's writes, and those of its warp before a __syncwarp.
DI void count_up(u32* counter, u32 by = 1) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(by) : "memory"); }

// Bytes of a unit's sums of x: for both columns of every group, or the operand of its minimums.
template <class F> DI constexpr int layer_table() { return FOLDED<F, ONE_ROW> ? 512 : F::OFFSET || F::MINIMUM ? 256 / F::SUB * 8 : 0; }
// A block's shared memory: slots, then barriers of slots, of buffers for sums and of norms, shares of norms, and what warps have of their own. Who writes and who reads it:
// - A slot: the copy engine, once all its warps have said at `empty` that they have read it; these warps, once it is `full`.
// - A buffer for sums: the warps that multiply, once the one that adds up has `drained` it; that one, once all lanes that write have said that it is `filled`.
// - Shares of a norm, which each norm has for itself: a lane of each warp; all of these warps after a barrier of theirs, the warp that norms once all shares are `normed`.
// - Room to order values: a warp alone. Tables: too, but those of formats with larger ones lie across other warps'; between products all of these warps meet as they wait for x.
struct LayerLayout {
    static constexpr int FULL = 0, EMPTY = 8 * MOST_SLOTS, DRAINED = 2 * EMPTY, FILLED = DRAINED + 8 * LAYER_SUMS, NORMED = FILLED + 8 * LAYER_SUMS, SHARES = NORMED + 8 * LAYER_NORMS;
    static constexpr int SUMS = (SHARES + LAYER_NORMS * WARPS * 4 + 127) / 128 * 128, STAGING = SUMS + LAYER_SUMS * WARPS * 128, TABLES = STAGING + WARPS * 1024;
};
// The ring of slots, a multiple of PIECES, and the buffers for the sums of warps.
struct LayerRing {
    u32 slot_bytes, slots, fixed, shared;
    DI u32 barrier(int at, int index) const { return shared + fixed + at + 8 * index; }
    DI u32 full(int slot) const { return barrier(LayerLayout::FULL, slot); }
    DI u32 empty(int slot) const { return barrier(LayerLayout::EMPTY, slot); }
    DI u32 drained(int buffer) const { return barrier(LayerLayout::DRAINED, buffer); }
    DI u32 filled(int buffer) const { return barrier(LayerLayout::FILLED, buffer); }
    DI u32 normed(int norm) const { return barrier(LayerLayout::NORMED, norm); }
    DI float* sums(int buffer) const { return (float*)(smem + fixed + LayerLayout::SUMS) + buffer * WARPS * 32; }
    DI float* shares(int norm) const { return (float*)(smem + fixed + LayerLayout::SHARES) + norm * WARPS; }
};
// Where a warp is in the ring and among the buffers.
struct LayerPlace {
    int slot, round, buffer, again, issued = 0;
    DI void next_slots(int count, int slots) {
        slot += count;
        if (slot >= slots) slot -= slots, round ^= 1;
    }
    DI void next_buffer() {
        if (++buffer == LAYER_SUMS) buffer = 0, again ^= 1;
    }
};
// The groups of rows of a block: the first and every `step`-th after it.
struct LayerGroups {
    int first, step, all;
    u32 slice;
    DI LayerGroups(const HopperProductArgs& a) {
        const u32 blocks = gridDim.x / a.slices, block = blockIdx.x / a.slices;
        slice = blockIdx.x - block * a.slices;
        step = blocks, all = a.groups;
        first = block + a.turned;
        if (first >= step) first -= step;
        if (block >= blocks) first = all; // one that is left over
    }
    DI int count() const { return first < all ? (all - first + step - 1) / step : 0; }
};
// Rows of a product's matrix.
DI u32 rows_of(const HopperProductArgs& p, int matrix) { return matrix == 0 ? p.n : matrix == 1 ? p.n1 : p.n2; }
// What the norm multiplies by, from the warps' sums of squares.
DI float norm_factor(const float* shares, u32 k, float eps) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += shares[w];
    return 1.f / sqrtf(total / (float)k + eps);
}
