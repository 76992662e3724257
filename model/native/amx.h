// Matrix products of bf16 with AMX: sixteen rows times sixteen outputs, thirty-two inputs per instruction. AMX adds
// pairs in its own order, so if it is used, it is used for every number of rows.
#pragma once
#include "linear.h"

namespace dp {

#if defined(DRAFTPOOL_AMX)

// Tile registers; the instructions need literal numbers. Sums of two strips; inputs and weights of whole steps; inputs
// and weights of a last, shorter step.
enum Tile { kSums0, kSums1, kInputs, kWeights0, kWeights1, kLastInputs, kLastWeights0, kLastWeights1 };

// pairs: pairs of inputs that remain after the whole steps.
inline TileConfig pair_tiles(int pairs) {
    TileConfig config;
    for (int tile : {kSums0, kSums1, kInputs, kWeights0, kWeights1}) config.shape(tile, 16, 64);
    if (!pairs) return config;
    config.shape(kLastInputs, 16, size_t(4) * pairs);
    for (int tile : {kLastWeights0, kLastWeights1}) config.shape(tile, pairs, 64);
    return config;
}

// Computes one or two strips. sums: [kRows][row_bytes]; x has kRows rows, and the spare ones may hold anything.
template <int STRIPS>
inline void strips_by_amx(const bf16* x, size_t stride, const Linear<bf16>& linear, int strip, void* sums, size_t row_bytes) {
    constexpr int step = 32;
    const int whole = linear.inputs / step * step;
    const bf16 *w0 = linear.strip(strip), *w1 = STRIPS == 2 ? linear.strip(strip + 1) : nullptr;
    _tile_zero(0);
    if constexpr (STRIPS == 2) _tile_zero(1);
    for (int k = 0; k < whole; k += step) {
        _tile_loadd(2, x + k, 2 * stride);
        _tile_loadd(3, w0 + size_t(k) * kStrip, 64);
        _tile_dpbf16ps(0, 2, 3);
        if constexpr (STRIPS == 2) {
            _tile_loadd(4, w1 + size_t(k) * kStrip, 64);
            _tile_dpbf16ps(1, 2, 4);
        }
    }
    if (whole < linear.inputs) {
        _tile_loadd(5, x + whole, 2 * stride);
        _tile_loadd(6, w0 + size_t(whole) * kStrip, 64);
        _tile_dpbf16ps(0, 5, 6);
        if constexpr (STRIPS == 2) {
            _tile_loadd(7, w1 + size_t(whole) * kStrip, 64);
            _tile_dpbf16ps(1, 5, 7);
        }
    }
    _tile_stored(0, sums, row_bytes);
    if constexpr (STRIPS == 2) _tile_stored(1, static_cast<char*>(sums) + 64, row_bytes);
}

// Like the general version: up to kRows rows and 1, 2 or 4 strips.
template <>
inline void sums_of_strips(const bf16* x, size_t stride, int, const Linear<bf16>& linear, int strip, int strips, vf* sums) {
    const TileConfig config = pair_tiles(linear.inputs % 32 / 2);
    asm volatile("" ::"r"(&config), "r"(x) : "memory");  // the intrinsics below do not declare all their reads
    _tile_loadconfig(&config);
    const size_t row_bytes = size_t(strips) * kStrip * sizeof(float);
    char* to = reinterpret_cast<char*>(sums);
    if (strips == 1) strips_by_amx<1>(x, stride, linear, strip, to, row_bytes);
    for (int s = 0; s + 2 <= strips; s += 2) strips_by_amx<2>(x, stride, linear, strip + s, to + s * 64, row_bytes);
    _tile_release();
}

#endif

}  // namespace dp
