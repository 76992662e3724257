// Rearranges rows of GGUF's blocks, or of int8 behind one float scale, into panels.
#pragma once
#include <algorithm>

#include "blocks.h"

namespace dp {

// One row in a file: the quants of block `block`, and its scales to their places in a panel.
template <Format>
struct Stored;

// Blocks of 32 with their scales in front, then the fifth bits, then the nibbles of the first and the last sixteen.
template <Format F>
struct StoredSmall {
    static constexpr int bits = Codec<F>::bits, scales = Codec<F>::scale_bytes / kLanes;
    static constexpr size_t bytes = scales + kBlockInputs * bits / 8;

    static void quants(const uint8_t* row, int block, uint8_t* to) {
        const uint8_t *high = row + block * bytes + scales, *low = high + (bits == 5 ? 4 : 0);
        if (bits == 8) return void(std::memcpy(to, low, kBlockInputs));
        const uint32_t fifth = bits == 5 ? load<uint32_t>(high) : 0;
        for (int i = 0; i < kBlockInputs; i++)
            to[i] = uint8_t((low[i % 16] >> (i < 16 ? 0 : 4) & 15) | (fifth >> i & 1) << 4);
    }

    static void scales_of(const uint8_t* row, int block, uint8_t* panel, int lane) {
        uint8_t* to = Codec<F>::block_at(panel, block) + 2 * lane;
        for (int i = 0; i < scales / 2; i++) std::memcpy(to + i * 2 * kLanes, row + block * bytes + 2 * i, 2);
    }
};
template <>
struct Stored<Format::q8_0> : StoredSmall<Format::q8_0> {};
template <>
struct Stored<Format::q4_0> : StoredSmall<Format::q4_0> {};
template <>
struct Stored<Format::q4_1> : StoredSmall<Format::q4_1> {};
template <>
struct Stored<Format::q5_0> : StoredSmall<Format::q5_0> {};
template <>
struct Stored<Format::q5_1> : StoredSmall<Format::q5_1> {};

// Eight blocks behind two halves and twelve bytes with eight scales and eight minima of six bits.
template <Format F>
struct StoredNested {
    static constexpr int bits = Codec<F>::bits;
    static constexpr size_t head = 16, bytes = head + 32 * bits;

    static void quants(const uint8_t* row, int block, uint8_t* to) {
        const uint8_t *high = row + block / 8 * bytes + head, *low = high + (bits == 5 ? 32 : 0) + block % 8 / 2 * 32;
        for (int i = 0; i < kBlockInputs; i++) {
            to[i] = low[i] >> block % 2 * 4 & 15;
            if (bits == 5) to[i] |= (high[i] >> block % 8 & 1) << 4;
        }
    }

    static void scales_of(const uint8_t* row, int block, uint8_t* panel, int lane) {
        const uint8_t *super = row + block / 8 * bytes, *packed = super + 4;
        const int j = block % 8;
        uint8_t *halves = Codec<F>::super_at(panel, block) + 2 * lane, *to = Codec<F>::block_at(panel, block) + lane;
        std::memcpy(halves, super, 2), std::memcpy(halves + 2 * kLanes, super + 2, 2);
        to[0] = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
        to[kLanes] = j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
};
template <>
struct Stored<Format::q4_k> : StoredNested<Format::q4_k> {};
template <>
struct Stored<Format::q5_k> : StoredNested<Format::q5_k> {};

// 128 bytes of nibbles, 64 of pairs of bits, 16 signed scales, a half.
template <>
struct Stored<Format::q6_k> {
    static constexpr size_t bytes = 210;

    static void quants(const uint8_t* row, int block, uint8_t* to) {
        const int side = block % 8 / 4, part = block % 4;
        const uint8_t* super = row + block / 8 * bytes;
        const uint8_t *low = super + side * 64 + part % 2 * 32, *high = super + 128 + side * 32;
        for (int i = 0; i < kBlockInputs; i++)
            to[i] = uint8_t((low[i] >> part / 2 * 4 & 15) | (high[i] >> 2 * part & 3) << 4);
    }

    static void scales_of(const uint8_t* row, int block, uint8_t* panel, int lane) {
        using C = Codec<Format::q6_k>;
        const uint8_t* super = row + block / 8 * bytes;
        std::memcpy(C::super_at(panel, block) + 2 * lane, super + 208, 2);
        for (int i = 0; i < 2; i++) C::block_at(panel, block)[i * kLanes + lane] = super[192 + block % 8 * 2 + i];
    }
};

template <>
struct Stored<Format::int8> {
    static void quants(const uint8_t* row, int block, uint8_t* to) { std::memcpy(to, row + 4 + block * kBlockInputs, kBlockInputs); }
    static void scales_of(const uint8_t* row, int, uint8_t* panel, int lane) { std::memcpy(panel + 4 * lane, row, 4); }
};

// Packs up to kLanes rows into one panel of zeros; lanes without a row stay zero.
template <Format F>
inline void pack_panel(const uint8_t* rows, size_t row_bytes, int count, int inputs, uint8_t* panel) {
    using C = Codec<F>;
    for (int block = 0; block < inputs / kBlockInputs; block++) {
        uint8_t own[kBlockInputs];
        uint32_t lanes[kGroups][kLanes] = {};
        for (int lane = 0; lane < count; lane++) {
            Stored<F>::quants(rows + lane * row_bytes, block, own);
            Stored<F>::scales_of(rows + lane * row_bytes, block, panel, lane);
            for (int g = 0; g < kGroups; g++) lanes[g][lane] = load<uint32_t>(own + 4 * g);
        }
        vu quants[kGroups];
        for (int g = 0; g < kGroups; g++) quants[g] = load<vu>(lanes[g]) ^ (C::bits == 8 && kUnsigned ? 0x80808080u : 0u);
        pack<C::bits>(quants, C::block_at(panel, block) + C::scale_bytes);
    }
}

constexpr int kPanels = 16 / kLanes;  // panels of a strip of sixteen outputs

inline size_t strip_bytes(Format format, int inputs) {
    return with_format(format, [&](auto f) { return kPanels * Codec<f()>::panel_bytes(inputs); });
}

// Packs up to sixteen rows into one strip of zeros.
inline void pack_strip(Format format, const uint8_t* rows, size_t row_bytes, int count, int inputs, uint8_t* strip) {
    with_format(format, [&](auto f) {
        for (int first = 0; first < count; first += kLanes, rows += kLanes * row_bytes, strip += Codec<f()>::panel_bytes(inputs))
            pack_panel<f()>(rows, row_bytes, std::min(kLanes, count - first), inputs, strip);
    });
}

}  // namespace dp
