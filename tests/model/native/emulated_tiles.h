// The instructions of AMX in plain C++, as Intel's manual says them, for processors that lack them: included before the
// kernels, it takes the place of the compiler's own.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

struct Tiles {
    uint16_t row_bytes[8];
    uint8_t rows[8];
    uint8_t data[8][16][64];
};

inline thread_local Tiles tiles;

// What every sum of products of bytes is wrong by, to see that somebody notices.
#if defined(EMULATED_FAULT)
constexpr int32_t kFault = EMULATED_FAULT;
#else
constexpr int32_t kFault = 0;
#endif

inline void load_config(const void* from) {
    const auto* bytes = static_cast<const uint8_t*>(from);
    std::memset(&tiles, 0, sizeof tiles);
    std::memcpy(tiles.row_bytes, bytes + 16, 16);
    std::memcpy(tiles.rows, bytes + 48, 8);
}

inline void zero(int tile) { std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]); }

inline void load(int tile, const void* base, size_t stride) {
    zero(tile);
    for (int r = 0; r < tiles.rows[tile]; r++)
        std::memcpy(tiles.data[tile][r], static_cast<const char*>(base) + r * stride, tiles.row_bytes[tile]);
}

inline void store(int tile, void* base, size_t stride) {
    for (int r = 0; r < tiles.rows[tile]; r++)
        std::memcpy(static_cast<char*>(base) + r * stride, tiles.data[tile][r], tiles.row_bytes[tile]);
}

inline float wide(const uint8_t* row, int index) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * index, 2);
    const uint32_t all = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &all, 4);
    return value;
}

inline void multiply(int sums, int a, int b) {
    for (int m = 0; m < tiles.rows[sums]; m++)
        for (int n = 0; n < tiles.row_bytes[sums] / 4; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < tiles.row_bytes[a] / 4; k++) {
                even = std::fma(wide(tiles.data[a][m], 2 * k), wide(tiles.data[b][k], 2 * n), even);
                odd = std::fma(wide(tiles.data[a][m], 2 * k + 1), wide(tiles.data[b][k], 2 * n + 1), odd);
            }
            std::memcpy(&sum, tiles.data[sums][m] + 4 * n, 4);
            sum += even + odd;
            std::memcpy(tiles.data[sums][m] + 4 * n, &sum, 4);
        }
}

// Signed bytes of a times unsigned ones of b.
inline void multiply_bytes(int sums, int a, int b) {
    for (int m = 0; m < tiles.rows[sums]; m++)
        for (int n = 0; n < tiles.row_bytes[sums] / 4; n++) {
            int32_t sum;
            std::memcpy(&sum, tiles.data[sums][m] + 4 * n, 4);
            sum += kFault;
            for (int k = 0; k < tiles.row_bytes[a]; k++)
                sum += int(int8_t(tiles.data[a][m][k])) * int(tiles.data[b][k / 4][4 * n + k % 4]);
            std::memcpy(tiles.data[sums][m] + 4 * n, &sum, 4);
        }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig(from) emulated::load_config(from)
#define _tile_release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_dpbf16ps(sums, a, b) emulated::multiply(sums, a, b)
#define _tile_dpbsud(sums, a, b) emulated::multiply_bytes(sums, a, b)
