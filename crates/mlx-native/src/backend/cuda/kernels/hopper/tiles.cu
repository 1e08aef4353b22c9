// What tiles of many rows are made of: the layout of a block's shared memory, weights as operands, and the order of work.

constexpr int MOST_BLOCKS = 256, MOST_GROUPS = 4;
// Raised when a part's sums lie in the held memory, for each warpgroup; zero before and after a launch.
__device__ u32 held_flags[2 * MOST_GROUPS * MOST_BLOCKS];

// Where weight rows start: at multiples of 16 bytes; on words; every other row on a word and those between two bytes past one; on even bytes; anywhere. All but the first are RAGGED.
enum TileRows { ON_16, ON_WORDS, BY_TURNS, ON_EVEN, ON_BYTES };
// Ragged rows that are one row of the map, a multiple of 16 bytes: so many start in different places.
DI constexpr int sorts_of(TileRows starts) { return starts == ON_BYTES ? 16 : 8; }

// STAGED: sums go to the output through shared memory.
template <class F, int GROUPS, int MI, int NT, bool STAGED, bool RAGGED> struct MatMulLayout {
    // A stage of weights is a unit, or a slice of one where units have many bytes.
    static constexpr int SLICES = !STAGED ? 1 : RAGGED ? F::RAGGED_SLICES : F::SLICES, SLICE = F::UNIT / SLICES;
    // Copies start on 16 bytes: a slice may start later than that, at the same place in all rows or, in ragged ones, anywhere.
    static constexpr int PAST = RAGGED ? 16 : SLICE % 16 == 0 ? 0 : SLICE % 8 == 0 ? 8 : SLICE % 4 == 0 ? 12 : 14;
    // Slices of whole lines of 128 bytes are copied line by line, and swizzled instead of spaced.
    static constexpr bool SWIZZLED = !RAGGED && SLICE % 128 == 0;
    static constexpr int ROWS = 64 * MI * GROUPS, LINES = SWIZZLED ? SLICE / 128 : 1, PITCH = SWIZZLED ? 128 : pitch_of(SLICE + PAST);
    DI static constexpr int least(int a, int b) { return a < b ? a : b; }
    DI static constexpr int most(int a, int b) { return a > b ? a : b; }
    // Scales and biases come for several units at once, as rows of few bytes are copied slowly. Behind each stage is room for some, used in turn.
    static constexpr int SIDE_PITCH = up(side_of<F>(), STAGED ? 16 : 32), SIDE_BYTES = ROWS * SIDE_PITCH, SIDE_UNITS = SIDE_PITCH / most(side_of<F>(), 1);
    static constexpr int SIDE = up(LINES * ROWS * PITCH, 128), CHUNK_BYTES = NT * 128, W_BYTES = SIDE + 2 * SIDE_BYTES;
    // The last values of ragged rows, 64 or less, that no unit of their own need be made for. Where a stage is a slice the next stage is LENT to them, as pieces of the output want
    // their room; a whole unit would come too late then.
    static constexpr int TAIL_PITCH = STAGED && RAGGED ? F::TAIL : 0, TAIL_BYTES = ROWS * TAIL_PITCH;
    static constexpr bool TAILED = TAIL_BYTES > 0, LENT = TAILED && SLICES > 1;
    static constexpr int ROOM = SHARED_LIMIT - 512 - (LENT ? 0 : TAIL_BYTES);
    // Narrow tiles are bound by memory: as many stages of weights as leave two units of x, and a stage of x is a unit, so that short
    // products wait less often. Where that leaves less than three, six chunks have to do.
    static constexpr int CHUNKS = NT <= 64 && (ROOM - 8 * CHUNK_BYTES) / W_BYTES > 2 ? 4 : 1, X_BYTES = CHUNKS * CHUNK_BYTES;
    static constexpr int MANY = NT <= 64 ? least((ROOM - (CHUNKS == 4 ? 8 : 6) * CHUNK_BYTES) / W_BYTES, 5) : 0;
    // Staged: two units of weights, or three slices, and four stages of x. What they leave are pieces of the output of 32 rows of x, or of 16 where each warpgroup would
    // have less than two. Others need six stages of x more than a third of weights.
    static constexpr int W_STAGES = STAGED ? SLICES + 1 : MANY > 2 ? MANY : most(2, least((ROOM - 6 * X_BYTES) / W_BYTES, 3));
    static constexpr int X_STAGES = STAGED ? 4 : least((ROOM - W_STAGES * W_BYTES) / X_BYTES, 8), LEFT = ROOM - W_STAGES * W_BYTES - X_STAGES * X_BYTES;
    static constexpr int PIECE = LEFT >= 2 * GROUPS * 32 * 256 ? 32 : 16, PIECE_BYTES = PIECE * 64 * 4, PIECES = STAGED ? least(LEFT / (GROUPS * PIECE_BYTES), 8) : 0;
    // Stages of weights, and the room of tails as one more behind them where none is lent. The slot of a run's tail, where its first unit begins in slot `first`.
    static constexpr int W_SLOTS = W_STAGES + (TAILED && !LENT);
    DI static constexpr int tail_slot(int first) { return !LENT ? W_STAGES : first == 0 ? W_STAGES - 1 : first - 1; }
    static constexpr int X = 0, STORE = X_STAGES * X_BYTES, W = STORE + GROUPS * PIECES * PIECE_BYTES, TAIL = W + W_STAGES * W_BYTES, X_FULL = TAIL + (LENT ? 0 : TAIL_BYTES), X_EMPTY = X_FULL + 8 * X_STAGES,
                         W_FULL = X_EMPTY + 8 * X_STAGES, W_EMPTY = W_FULL + 8 * W_SLOTS, STORE_FULL = W_EMPTY + 8 * W_SLOTS, STORE_EMPTY = STORE_FULL + 8 * GROUPS * PIECES;
    static constexpr int PARTS_FULL = STORE_EMPTY + 8 * GROUPS * PIECES, BYTES = PARTS_FULL + 8 * GROUPS;
    // The sums of a block, and the chunks of x that they fill.
    static constexpr int PART_BYTES = ROWS * NT * 4, PART_CHUNKS = PART_BYTES / CHUNK_BYTES;
    static_assert(X_STAGES * CHUNKS >= 3 && (!STAGED || PIECES >= 2) && TAIL_BYTES <= W_BYTES && BYTES <= SHARED_LIMIT, "stages");
};

// A unit's row in swizzled lines, LINE bytes from one to the next: `at` is where the first one lies, plus 16 for each row since the last multiple of eight. Offsets are multiples of 16.
template <int LINE> struct SwizzledRow {
    static constexpr int PAST = 0;
    u32 at;
    const u8 *scales, *biases;
    DI u32 word(u32 offset) const { return lds32((at ^ offset & 112) + offset / 128 * LINE); }
    DI SwizzledRow lane(int t) const { return {at + 4 * t, scales, biases}; }
};

constexpr u32 half_of_integer(int v) { // for |v| < 2048, both halves
    int a = v < 0 ? -v : v, e = 0;
    while ((a >> e) > 1) e++;
    const u32 h = a == 0 ? 0 : (v < 0 ? 0x8000u : 0u) | (u32)(e + 15) << 10 | ((u32)(a << (10 - e)) & 0x3ff);
    return h * 0x10001u;
}

// Makes zeros of the scales and minimums of a unit's slice from its value `valid` on, where those of the next row lie, in shared memory; each of four lanes those of every fourth group.
// Only blocks of 32 values end within a unit, and each begins with its scale.
template <class F, int SLICES> DI void clear_scales(u8* unit, int t, int slice, int valid) {
#pragma unroll
    for (int group = slice * (8 / SLICES) + t; group < (slice + 1) * (8 / SLICES); group += 4)
        if (32 * group >= valid) {
            u8* block = unit + group * (F::UNIT / 8);
            if constexpr (F::RANGED) *block = 0;
            else *(u16*)block = 0;
            if constexpr (F::MINIMUM) ((u16*)block)[1] = 0;
        }
}
// The left operand of a chunk: 64 values of a row as half-precision weights. Scales relative to a reference are in `ranged`.
template <class F, class R>
DI void chunk_weights(const R& row, const typename F::Head& head, int c, int t, u32 (&a)[4][4], int bottom, u32 ranged) {
    u32 q[4][2];
    F::template bits<HALF_1024>(row, head, c, t, q);
    constexpr int STEPS = F::SUB / 16;
    constexpr float LIFTED = (float)(1 << F::LIFT);
    float unit = LIFTED, unit_low = LIFTED;
    if constexpr (F::UNIT_SCALE) unit = F::unit_scale(head);
    if constexpr (F::UNIT_SCALE && F::MINIMUM) unit_low = F::unit_minimum(head);
#pragma unroll
    for (int j = 0; j < 4 / STEPS; j++) {
        u32 scale;
        if constexpr (F::RANGED) scale = spread(ranged, j);
        else if constexpr (F::HALVES) scale = F::half_scale(row, head, c, j);
        else {
            const float s = F::scale(row, head, c, j) * unit;
            scale = pack_halves(s, s);
        }
        u32 minimum = 0;
        if constexpr (F::MINIMUM && F::HALVES) minimum = F::half_minimum(row, head, c, j);
        else if constexpr (F::MINIMUM) {
            const float low = F::minimum(row, head, c, j) * unit_low;
            minimum = pack_halves(low, low);
        }
#pragma unroll
        for (int i = j * STEPS; i < (j + 1) * STEPS; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int shift = F::shift(4 * c + i);
                u32 v = q[i][r];
                if constexpr (!F::TRUE_HALVES) {
                    const u32 less = half_of_integer(-(1024 >> shift) - F::OFFSET);
                    v = shift ? hfma2(v, (u32)(15 - shift) * 0x04000400u, less) : hadd2(v, less);
                }
                a[i][2 * r + bottom] = F::MINIMUM ? hfma2(v, scale, minimum) : hmul2(v, scale);
            }
    }
}

// The units of a cluster, numbered from 0: `shared` of the tiles that several clusters share, from `begin` on, then whole tiles.
struct Schedule {
    int begin, shared, total, shared_tiles, whole, clusters, cluster, units; // whole: the first of the cluster's whole tiles
    bool aside; // whether all parts are stored, and added up under the products of whole tiles, which takes as long as some units
    DI Schedule(int tiles, int units_, int clusters_, int cluster_, bool may_wait) : clusters(clusters_), cluster(cluster_), units(units_) {
        // Sharing costs about as much as three units; a last wave that is nearly full had better stay whole. With few tiles all are shared: clusters then
        // stand at different places of k and do not all ask for the same part of x at once.
        const int last = tiles % clusters;
        aside = may_wait && !all_shared(tiles, clusters) && units >= 8;
        shared_tiles = last == 0 || (clusters - last) * units <= 3 * clusters ? 0 : aside ? last : all_shared(tiles, clusters) ? tiles : min(tiles, clusters + last);
        whole = shared_tiles + cluster;
        begin = first(cluster), shared = first(cluster + 1) - begin;
        const int rest = tiles - shared_tiles;
        total = shared + (rest > cluster ? (rest - cluster - 1) / clusters + 1 : 0) * units;
    }
    DI static bool all_shared(int tiles, int clusters) { return tiles <= 8 * clusters; }
    // The first shared unit of cluster c.
    DI int first(int c) const {
        // Every sharing cluster has a unit at least, so that each tile's later units are those of the clusters that follow.
        const u32 all = shared_tiles * units, sharing = max(min((u32)clusters, all), 1), i = min((u32)c, sharing);
        return all / sharing * i + all % sharing * i / sharing;
    }
    // The cluster that has the last unit of a shared tile.
    DI int holder(int tile) const {
        int c = cluster;
        while (first(c + 1) < (tile + 1) * units) c++;
        return c;
    }
    // The one that has the first.
    DI int owner(int tile) const {
        int c = cluster;
        while (first(c) > tile * units) c--;
        return c;
    }
    // Whether the sums of the run that starts at v, with that unit, are stored for others to add.
    DI bool is_part(int v, int unit) const { return aside ? v < shared : unit != 0; }
    // Tile and unit within it of number v.
    DI void at(int v, int& tile, int& unit) const {
        if (v < shared) tile = (begin + v) / units, unit = (begin + v) % units;
        else tile = (v - shared) / units * clusters + whole, unit = (v - shared) % units;
    }
    // Whether the first run is one: a cluster has no other.
    DI bool begins_with_part() const { return shared > 0 && is_part(0, begin % units); }
    // Whether number v starts another tile than v - 1, or may.
    DI bool jumps(int v, int unit) const { return unit == units || v == shared; }
    // Where the run of units of one tile that starts at v ends.
    DI int run_end(int v, int unit) const { return min(v + units - unit, v < shared ? shared : total); }
};

// What the rows of a routed product belong to.
struct Routing {
    const uint4* tiles; // expert, first place in `lists`, places; those without places come last
    const u32* lists;   // the slots of each expert, one list after the other
    u32 n_tiles;
};
// A tile: matrix, weight rows by whole tiles, first row of the prepared x, rows of x.
struct Tile {
    int matrix, row_tile, token, tokens;
};
