// Products of blocks with AMX: sixteen rows times sixteen outputs, a block or half of one per instruction. The integers
// are those that vectors compute, and quantized.h scales and adds both: a row has the same bits either way.
#pragma once
#include "quantized.h"

namespace dp {

#if defined(DRAFTPOOL_AMX)
static_assert(kUnsigned, "tiles multiply signed inputs by unsigned weights");

// The shapes of the tile registers.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void shape(int tile, int num_rows, size_t bytes) { rows[tile] = uint8_t(num_rows), row_bytes[tile] = uint16_t(bytes); }
};
static_assert(sizeof(TileConfig) == 64);

constexpr int kLeastTileRows = 8;  // fewer cost less in vectors; a pass over more than kWideRows has no fewer

// Dot products of a block, or of its halves, with each row. Tiles 0 and 1: the products; 2 and 3: inputs and weights of a
// block; 4 and 5, 6 and 7: of its halves. The instructions need literal numbers.
template <int PARTS>
inline void dots_by_tiles(const InputBlock* inputs, const uint8_t* weights, vi (&dots)[PARTS][kWideRows]) {
    asm volatile("" ::"r"(inputs), "r"(weights) : "memory");  // the intrinsics below do not declare all their reads
    if constexpr (PARTS == 1) {
        _tile_zero(0);
        _tile_loadd(2, inputs->quants, sizeof(InputBlock));
        _tile_loadd(3, weights, kRegister);
        _tile_dpbsud(0, 2, 3);
        _tile_stored(0, dots[0], kRegister);
    } else {
        _tile_zero(0);
        _tile_loadd(4, inputs->quants, sizeof(InputBlock));
        _tile_loadd(5, weights, kRegister);
        _tile_dpbsud(0, 4, 5);
        _tile_stored(0, dots[0], kRegister);
        _tile_zero(1);
        _tile_loadd(6, inputs->quants + kBlockInputs / 2, sizeof(InputBlock));
        _tile_loadd(7, weights + kGroups / 2 * kRegister, kRegister);
        _tile_dpbsud(1, 6, 7);
        _tile_stored(1, dots[1], kRegister);
    }
}

// Like panel_times_rows. The tiles of a block run while the products of the one before it are scaled.
template <class C, int ROWS>
__attribute__((noinline)) void panel_by_tiles(const InputBlock* inputs, size_t stride, int rows, const uint8_t* panel, int blocks, vf* sums, int out_stride) {
    vf own[ROWS ? ROWS : kWideRows] = {};
    if (ROWS) rows = ROWS;
    alignas(64) vi dots[2][C::parts][kWideRows];
    alignas(64) vu quants[2][kGroups];
    auto start = [&](int block) {
        const uint8_t *at = C::block_at(panel, block), *weights = at + C::scale_bytes;
#pragma GCC unroll 8
        for (size_t line = 0; line < C::block_bytes; line += 64) __builtin_prefetch(at + line + kFetch);
        if constexpr (C::bits < 8) {
            unpack<C::bits>(weights, quants[block % 2]);
            weights = reinterpret_cast<const uint8_t*>(quants[block % 2]);
        }
        dots_by_tiles<C::parts>(inputs + block * stride, weights, dots[block % 2]);
    };
    for (int block = 0; block <= blocks; block++) {
        if (block < blocks) start(block);
        if (block == 0) continue;
        const int done = block - 1;
        const InputBlock* x = inputs + done * stride;
        Scales scales;
        read_scales<C>(panel, done, scales);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            own[r] = add_dots<C>(dots[done % 2][0][r], 0, x[r], scales, own[r]);
            if constexpr (C::parts == 2) own[r] = add_dots<C>(dots[done % 2][1][r], 1, x[r], scales, own[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) sums[r * out_stride] = own[r];
}

// Tiles for so many rows, from its making on for as long as it lives; few rows go without.
class BlockTiles {
   public:
    explicit BlockTiles(int rows) : rows_(rows) {
        if (rows < kLeastTileRows) return;
        TileConfig config;
        for (int dots : {0, 1}) config.shape(dots, rows, kRegister);
        config.shape(2, rows, kBlockInputs), config.shape(3, kGroups, kRegister);
        for (int inputs : {4, 6}) config.shape(inputs, rows, kBlockInputs / 2), config.shape(inputs + 1, kGroups / 2, kRegister);
        asm volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }

    ~BlockTiles() {
        if (rows_ >= kLeastTileRows) _tile_release();
    }

    BlockTiles(const BlockTiles&) = delete;

    // panel_product for so many rows.
    template <class C>
    void product(const InputBlock* inputs, size_t stride, const uint8_t* panel, int blocks, vf* sums, int out_stride) const {
        if (rows_ < kLeastTileRows) return panel_product<C>(inputs, stride, rows_, panel, blocks, sums, out_stride);
        if (rows_ == kWideRows) return panel_by_tiles<C, kWideRows>(inputs, stride, rows_, panel, blocks, sums, out_stride);
        panel_by_tiles<C, 0>(inputs, stride, rows_, panel, blocks, sums, out_stride);
    }

   private:
    const int rows_;
};

#else

// What multiplies panels by so many rows: vectors.
struct BlockTiles {
    int rows;

    template <class C>
    void product(const InputBlock* inputs, size_t stride, const uint8_t* panel, int blocks, vf* sums, int out_stride) const {
        panel_product<C>(inputs, stride, rows, panel, blocks, sums, out_stride);
    }
};

#endif

}  // namespace dp
