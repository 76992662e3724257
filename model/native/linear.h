// y = x W^T over weights packed in strips of sixteen outputs, read once per pass whatever the number of rows.
//
// A strip holds, input by input, the sixteen weights of its outputs (bf16: pairs of inputs, as vdpbf16ps takes them).
// One lane of one accumulator adds up one output over the inputs in ascending order. How many rows and strips are
// computed side by side changes neither that order nor the instructions, so a row's result depends on that row alone.
#pragma once
#include "pool.h"
#include "simd.h"

namespace dp {

template <class T>
struct Linear {
    const T* strips;    // [num_strips][inputs][16], bf16: [num_strips][inputs / 2][16][2]
    const float* bias;  // [num_strips * 16] or null
    int outputs, inputs;  // outputs as stored, inputs padded to even

    int num_strips() const { return (outputs + 15) / 16; }
    const T* strip(int index) const { return strips + size_t(index) * inputs * 16; }
};

// One vector of weights against one row: 2 inputs in bf16, 1 in float.
inline void accumulate(f32x16& sum, const bf16* x, const bf16* w) {
    uint32_t pair = load<uint32_t>(x);
#if defined(__AVX512BF16__)
    sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(pair)), (__m512bh)load<u32x16>(w));
#else
    u32x16 both = load<u32x16>(w);
    sum += widen(bf16{uint16_t(pair)}) * (f32x16)(both << 16);
    sum += widen(bf16{uint16_t(pair >> 16)}) * (f32x16)(both & 0xffff0000u);
#endif
}

inline void accumulate(f32x16& sum, const float* x, const float* w) { sum += *x * load16(w); }

template <class T>
constexpr int kStep = sizeof(T) == 2 ? 2 : 1;

template <class T, int ROWS, int STRIPS>
inline void tile(const T* x, size_t stride, const T* w, int inputs, f32x16 (&sum)[ROWS][STRIPS]) {
    const size_t strip = size_t(inputs) * 16;
    for (int k = 0; k < inputs; k += kStep<T>)
#pragma GCC unroll 8
        for (int s = 0; s < STRIPS; s++)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) accumulate(sum[r][s], x + r * stride + k, w + s * strip + size_t(k) * 16);
}

// emit(row, strip, sums of that strip, STRIPS of them)
template <class T, int ROWS, int STRIPS, class Emit>
inline void tile_rows(const T* x, size_t stride, const Linear<T>& linear, int row, int strip, const Emit& emit) {
    f32x16 sum[ROWS][STRIPS] = {};
    tile<T, ROWS, STRIPS>(x + row * stride, stride, linear.strip(strip), linear.inputs, sum);
    for (int r = 0; r < ROWS; r++) {
        if (linear.bias)
            for (int s = 0; s < STRIPS; s++) sum[r][s] += load16(linear.bias + (strip + s) * 16);
        emit(row + r, strip, sum[r], STRIPS);
    }
}

template <class T, int STRIPS, class Emit>
inline void all_rows(const T* x, size_t stride, int rows, const Linear<T>& linear, int strip, const Emit& emit) {
    int row = 0;
    for (; rows - row >= 6; row += 6) tile_rows<T, 6, STRIPS>(x, stride, linear, row, strip, emit);
    switch (rows - row) {
        case 5: return tile_rows<T, 5, STRIPS>(x, stride, linear, row, strip, emit);
        case 4: return tile_rows<T, 4, STRIPS>(x, stride, linear, row, strip, emit);
        case 3: return tile_rows<T, 3, STRIPS>(x, stride, linear, row, strip, emit);
        case 2: return tile_rows<T, 2, STRIPS>(x, stride, linear, row, strip, emit);
        case 1: return tile_rows<T, 1, STRIPS>(x, stride, linear, row, strip, emit);
    }
}

// This thread's share of the strips, in pairs, for all rows. x: [rows][stride].
template <class T, class Emit>
void multiply(const T* x, size_t stride, int rows, const Linear<T>& linear, int thread, int num_threads, const Emit& emit) {
    const int num_strips = linear.num_strips();
    Share pairs((num_strips + 1) / 2, thread, num_threads);
    int strip = 2 * pairs.begin, end = std::min(2 * pairs.end, num_strips);
    for (; end - strip >= 4; strip += 4) all_rows<T, 4>(x, stride, rows, linear, strip, emit);
    for (; end - strip >= 2; strip += 2) all_rows<T, 2>(x, stride, rows, linear, strip, emit);
    if (strip < end) all_rows<T, 1>(x, stride, rows, linear, strip, emit);
}

}  // namespace dp
