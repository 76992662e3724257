// Products of blocks of few bits with activations rounded to int8 in blocks of 32. Dot products of a block are exact
// integers; blocks are added in ascending order in one lane, whatever the number of rows. So a row's result depends on
// that row alone.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "blocks.h"

namespace dp {

// 32 activations of one row: scale * quants.
struct alignas(16) InputBlock {
    float scale, sums[3];  // of the first and the second sixteen and of all, times scale
    int8_t quants[kBlockInputs];
};

inline vf load_inputs(const float* from) { return load_floats(from); }
inline vf load_inputs(const bf16* from) { return (vf)(__builtin_convertvector(load<half_vu>(from), vu) << 16); }

// Stores 32 integers as bytes.
inline void store_bytes(int8_t* to, const vi (&from)[kBlockInputs / kLanes]) {
#if defined(__AVX512F__)
    for (int v = 0; v < 2; v++) store(to + v * kLanes, _mm512_cvtepi32_epi8((__m512i)from[v]));
#elif defined(__AVX2__)
    const __m256i low = _mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]);
    const __m256i high = _mm256_packs_epi32((__m256i)from[2], (__m256i)from[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing goes by halves of a register
    store(to, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
#else
    for (int i = 0; i < kBlockInputs; i++) to[i] = int8_t(from[i / kLanes][i % kLanes]);
#endif
}

// Rounds 32 activations to int8; the largest becomes 127. What is not a finite number makes the scale NaN.
template <class In>
inline void quantize(const In* from, InputBlock& to) {
    constexpr int vecs = kBlockInputs / kLanes;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf x[vecs], most = {}, odd = {};
    for (int v = 0; v < vecs; v++) {
        x[v] = load_inputs(from + v * kLanes);
        const vf size = (vf)((vu)x[v] & 0x7fffffffu);
        most = select<vf>(size > most, size, most);
        odd = fma(x[v], vf{}, odd);
    }
    const float top = largest(most), inverse = top > 1e-36f ? 127.0f / top : 0.0f;
    to.scale = top / 127.0f + sum(odd);
    vi quants[vecs], sums[2] = {};
    for (int v = 0; v < vecs; v++) {
        quants[v] = __builtin_convertvector(fma(x[v], splat(inverse), magic) - magic, vi);
        sums[2 * v / vecs] += quants[v];
    }
    store_bytes(to.quants, quants);
    for (int part = 0; part < 2; part++) to.sums[part] = to.scale * sum(__builtin_convertvector(sums[part], vf));
    to.sums[2] = to.sums[0] + to.sums[1];
}

// The activations of a pass, block by block: [blocks][rows].
struct InputBlocks {
    std::vector<InputBlock> data;
    int rows = 0;

    void resize(int num_rows, int inputs) {
        rows = num_rows;
        data.resize(std::max(data.size(), size_t(num_rows) * ((inputs + kBlockInputs - 1) / kBlockInputs)));
    }
    InputBlock& at(int block, int row) { return data[size_t(block) * rows + row]; }
};

typedef int16_t shorts __attribute__((vector_size(4 * kLanes)));

// Sums of products of unsigned bytes (at most 127) and signed ones, in pairs.
inline shorts multiply_pairs(vu a, vu b) {
#if defined(__AVX512BW__)
    return (shorts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
    shorts pairs;
    for (int i = 0; i < 2 * kLanes; i++) {
        const uint32_t x = a[i / 2] >> 16 * (i % 2), y = b[i / 2] >> 16 * (i % 2);
        pairs[i] = int16_t(int(uint8_t(x)) * int8_t(y) + int(uint8_t(x >> 8)) * int8_t(y >> 8));
    }
    return pairs;
#endif
}

inline vi widen_pairs(shorts pairs) {
#if defined(__AVX512BW__)
    return (vi)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    return (vi)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
#else
    return ((vi)pairs << 16 >> 16) + ((vi)pairs >> 16);
#endif
}

// Sizes of signed bytes, and b with the signs of a.
inline vu size_of(vu a) {
#if defined(__AVX512BW__)
    return (vu)_mm512_abs_epi8((__m512i)a);
#elif defined(__AVX2__)
    return (vu)_mm256_abs_epi8((__m256i)a);
#else
    typedef int8_t bytes __attribute__((vector_size(4 * kLanes)));
    return (vu)((bytes)a < 0 ? -(bytes)a : (bytes)a);
#endif
}

inline vu with_sign(vu b, vu a) {
#if defined(__AVX512BW__)
    return (vu)_mm512_mask_sub_epi8((__m512i)b, _mm512_movepi8_mask((__m512i)a), __m512i{}, (__m512i)b);
#elif defined(__AVX2__)
    return (vu)_mm256_sign_epi8((__m256i)b, (__m256i)a);
#else
    typedef int8_t bytes __attribute__((vector_size(4 * kLanes)));
    return (vu)((bytes)a < 0 ? -(bytes)b : (bytes)b);
#endif
}

// Adds to each sum the products of four unsigned and four signed bytes.
#if defined(__AVX512VNNI__)
inline vi add_products(vi sum, vu a, vu b) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }
#elif defined(__AVXVNNI__)
inline vi add_products(vi sum, vu a, vu b) { return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b); }
#endif

// Dot products of GROUPS groups of weights with the same inputs for all lanes. weights of eight bits are signed.
template <int BITS, int GROUPS>
inline vi dot(const vu* weights, const int8_t* inputs) {
    vi totals[2] = {};  // two, so that an addition need not wait for the one before it
    auto input = [&](int g) { return vu{} + load<uint32_t>(inputs + 4 * g); };
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) totals[g % 2] = add_products(totals[g % 2], weights[g], input(g));
#else
    if constexpr (BITS == 8) {
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g++)
            totals[g % 2] += widen_pairs(multiply_pairs(size_of(weights[g]), with_sign(input(g), weights[g])));
    } else {
        constexpr int chain = std::min(GROUPS, 32 >> (BITS - 2));  // so many pairs do not overflow sixteen bits
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g += chain) {
            shorts pairs = multiply_pairs(weights[g], input(g));
#pragma GCC unroll 8
            for (int i = 1; i < chain; i++) pairs += multiply_pairs(weights[g + i], input(g + i));
            totals[0] += widen_pairs(pairs);
        }
    }
#endif
    return totals[0] + totals[1];
}

// Adds the dot products of one row with a part of a block.
template <class C>
inline vf add_dots(vi dots, int part, const InputBlock& x, const Scales& s, vf sum) {
    sum = fma(__builtin_convertvector(dots, vf), s.scale[part] * x.scale, sum);
    return kHasOffset<C> ? fma(s.offset[part], splat(x.sums[C::parts == 1 ? 2 : part]), sum) : sum;
}

// Adds the products of one row with a block.
template <class C>
inline vf add_block(const InputBlock& x, const vu (&quants)[kGroups], const Scales& s, vf sum) {
    constexpr int parts = C::parts, groups = kGroups / parts;
#pragma GCC unroll 2
    for (int part = 0; part < parts; part++)
        sum = add_dots<C>(dot<C::bits, groups>(quants + part * groups, x.quants + part * groups * 4), part, x, s, sum);
    return sum;
}

constexpr int kWideRows = 16;  // rows that a panel is unpacked for at a time
constexpr int kPanelRows = 6;  // rows whose sums stay in registers

// A panel times `rows` rows. inputs: [blocks][stride]. sums: [rows][out_stride]. ROWS 0: up to kWideRows.
template <class C, int ROWS>
__attribute__((noinline)) void panel_times_rows(const InputBlock* inputs, size_t stride, int rows, const uint8_t* panel, int blocks, vf* sums, int out_stride) {
    vf own[ROWS ? ROWS : kWideRows];
    if (ROWS) rows = ROWS;
    for (int r = 0; r < rows; r++) own[r] = vf{};
    vu quants[kGroups];
    Scales scales;
    for (int block = 0; block < blocks; block++, inputs += stride) {
        const uint8_t* at = C::block_at(panel, block);
#pragma GCC unroll 8
        for (size_t line = 0; line < C::block_bytes; line += 64) __builtin_prefetch(at + line + kFetch);
        read_block<C>(panel, block, quants, scales);
        if constexpr (ROWS > 0) {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) own[r] = add_block<C>(inputs[r], quants, scales, own[r]);
        } else {
            for (int r = 0; r < rows; r++) own[r] = add_block<C>(inputs[r], quants, scales, own[r]);
        }
    }
    for (int r = 0; r < rows; r++) sums[r * out_stride] = own[r];
}

template <class C, int ROWS = kPanelRows>
inline void panel_product(const InputBlock* inputs, size_t stride, int rows, const uint8_t* panel, int blocks, vf* sums, int out_stride) {
    if (rows == ROWS || ROWS == 0) return panel_times_rows<C, ROWS>(inputs, stride, rows, panel, blocks, sums, out_stride);
    if constexpr (ROWS > 0) panel_product<C, ROWS == 1 ? 0 : ROWS - 1>(inputs, stride, rows, panel, blocks, sums, out_stride);
}

}  // namespace dp
