
// The tile of a product: 64 weight rows (columns of the result) by 32 input rows, 32 of k at a time, by 128 threads. Tiles of half
// hold every row of a step relative to its own largest magnitude: whatever the input and the weights' scales are, nothing
// overflows, and nothing is subnormal that matters to the sum.
constexpr constant uint TILE_N = 64;
constexpr constant uint TILE_M = 32;
constexpr constant uint TILE_K = 32;

// Largest magnitude of COUNT values in each of `lanes` neighbouring lanes, a power of two.
template <uint COUNT> inline float largest_of(thread const float* v, ushort lanes) {
    float largest = 0.0f;
    for (uint i = 0; i < COUNT; i++) largest = max(largest, fabs(v[i]));
    for (ushort step = 1; step < lanes; step *= 2) largest = max(largest, simd_shuffle_xor(largest, step));
    return largest;
}

// Tiles of half are scaled, tiles of float are not.
template <typename T> struct Scaled { enum { VALUE = 1 }; };
template <> struct Scaled<float> { enum { VALUE = 0 }; };

// What a thread brings into every step of a tile: sixteen values of a weight row, eight of an input row, and the scales of both.
template <typename W, typename T> struct TileLoader {
    threadgroup T* ws;
    threadgroup T* xs;
    threadgroup float* w_scales;
    threadgroup float* x_scales;
    ulong batch, source;
    uint column, w_part, x_part, w_row, x_row;
    bool has_column, has_row;

    // Row r of the tile is input row row0 + r, or with ROUTED the token of slot slots[row0 + r]; rows from `rows` on do not exist.
    template <bool ROUTED>
    static TileLoader make(constant MatmulArgs& args, uint batch, uint row0, uint rows, device const uint* slots, uint column0,
                           threadgroup uchar* shared, uint thread_index) {
        TileLoader tile;
        tile.ws = (threadgroup T*)shared;
        tile.xs = tile.ws + TILE_N * TILE_K;
        tile.w_scales = (threadgroup float*)(tile.xs + TILE_M * TILE_K);
        tile.x_scales = tile.w_scales + TILE_N;
        tile.batch = batch;
        tile.w_row = thread_index / 2;
        tile.w_part = thread_index % 2;
        tile.x_row = thread_index / 4;
        tile.x_part = thread_index % 4;
        tile.column = column0 + tile.w_row;
        tile.has_column = tile.column < args.n;
        tile.has_row = tile.x_row < rows;
        tile.source = 0;
        if (tile.has_row) tile.source = ROUTED ? slots[row0 + tile.x_row] / args.top_k : row0 + tile.x_row;
        return tile;
    }

    // The operands from k0 on, zero where there are none.
    void load(thread const W& weight, device const uchar* x, constant MatmulArgs& args, uint k0) const {
        float w[16], v[8];
        if (has_column && k0 + 16 * w_part < args.k) {
            weight.chunk(column, k0 / 16 + w_part, args.k, w);
        } else {
            for (uint i = 0; i < 16; i++) w[i] = 0.0f;
        }
        if (has_row && k0 + 8 * x_part < args.k) {
            x_values<8>(x, batch, source, k0 + 8 * x_part, args, v);
        } else {
            for (uint i = 0; i < 8; i++) v[i] = 0.0f;
        }
        float2 w_scale = float2(1.0f), x_scale = float2(1.0f);
        if (Scaled<T>::VALUE) {
            // Weights of half are what the tile holds already.
            if (!W::HALF) w_scale = block_scale(largest_of<16>(w, 2));
            x_scale = block_scale(largest_of<8>(v, 4));
            if (w_part == 0) w_scales[w_row] = w_scale.y;
            if (x_part == 0) x_scales[x_row] = x_scale.y;
        }
        for (uint i = 0; i < 16; i++) ws[w_row * TILE_K + 16 * w_part + i] = T(w[i] * w_scale.x);
        for (uint i = 0; i < 8; i++) xs[x_row * TILE_K + 8 * x_part + i] = T(v[i] * x_scale.x);
    }
};

// Where the result's row r of a tile lies.
template <bool ROUTED> inline ulong output_row(constant MatmulArgs& args, uint batch, uint row0, uint r, device const uint* slots) {
    return ROUTED ? ulong(slots[row0 + r]) : ulong(batch) * args.m + row0 + r;
}

// The tile of an expert's list that threadgroup `tile` makes: expert, first slot in the lists, and how many of its rows exist; false
// when there are fewer tiles. There are at most slots / 32 whole tiles and one partial one an expert.
inline bool expert_tile(constant MatmulArgs& args, device const uint* counts, uint tile, thread uint& expert, thread uint& first,
                        thread uint& rows) {
    first = 0;
    for (expert = 0; expert < args.n_experts; expert++) {
        const uint count = counts[expert], tiles = (count + TILE_M - 1) / TILE_M;
        if (tile < tiles) {
            first += tile * TILE_M;
            rows = min(count - tile * TILE_M, TILE_M);
            return true;
        }
        tile -= tiles;
        first += count;
    }
    return false;
}
