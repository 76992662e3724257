// y = x W^T over weights packed in strips of sixteen outputs. Weights are read once per pass for any number of rows.
//
// A strip holds, input by input, the weights of its sixteen outputs (bf16: pairs of inputs, as vdpbf16ps reads them).
// One lane of one accumulator sums one output over the inputs in ascending order. The number of rows and strips
// computed together changes neither the order nor the instructions, so a row's result depends on that row alone.
#pragma once
#include <algorithm>
#include <type_traits>

#include "amx_blocks.h"
#include "pool.h"

namespace dp {

constexpr int kStrip = 16, kVecs = kStrip / kLanes;  // outputs and vectors of a strip

template <class T>
constexpr bool kPairs = sizeof(T) == 2;

// The input type of matrix products with weights T: bf16 if the machine can multiply it, else float.
#if defined(__AVX512BF16__) || defined(DRAFTPOOL_AMX)
template <class T>
using Input = T;
#else
template <class T>
using Input = float;
#endif

template <class T>
struct Linear {
    const T* strips;    // [num_strips][inputs][16], bf16: [num_strips][inputs / 2][16][2]; null: `quantized` instead
    const float* bias;  // [num_strips * 16] or null
    const Strip* quantized;  // [num_strips]
    int outputs, inputs;  // outputs as stored, inputs padded to even, or to whole blocks
    int unit;             // strips that one thread computes together: two, or four

    int num_strips() const { return (outputs + kStrip - 1) / kStrip; }
    int num_units() const { return (num_strips() + unit - 1) / unit; }
    const T* strip(int index) const { return strips + size_t(index) * inputs * kStrip; }
};

// The rows that a matrix is multiplied by: blocks for quantized weights, else floats.
template <class T>
struct Rows {
    const Input<T>* dense;  // [rows][stride]
    size_t stride;
    InputBlocks* blocks;
};

// sum plus the products of pairs of bf16, lane by lane.
inline vf add_pairs(vf sum, vu a, vu b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return fma(second_of(a), second_of(b), fma(first_of(a), first_of(b), sum));
#endif
}

// Adds one row's input, or two of bf16, times their weights.
template <int VECS>
inline void add(const bf16* x, const vu (&w)[VECS], vf (&sum)[VECS]) {
    const vu pair = vu{} + load<uint32_t>(x);
#pragma GCC unroll 8
    for (int v = 0; v < VECS; v++) sum[v] = add_pairs(sum[v], pair, w[v]);
}

template <int VECS>
inline void add(float x, const vf (&w)[VECS], vf (&sum)[VECS]) {
#pragma GCC unroll 8
    for (int v = 0; v < VECS; v++) sum[v] = fma(splat(x), w[v], sum[v]);
}

// A tile of ROWS rows times VECS vectors of weights, held in registers. A separate function, so that code that uses the
// sums takes no registers from it. sums: [ROWS][out_stride].
template <class T, int ROWS, int VECS>
__attribute__((noinline)) void tile(const Input<T>* x, size_t stride, const T* weights, int inputs, vf* sums, int out_stride) {
    vf sum[ROWS][VECS] = {};
    constexpr int step = kPairs<T> ? 2 : 1;
    const size_t strip = size_t(inputs) * kStrip;
    auto at = [&](int v, int k) { return weights + v / kVecs * strip + size_t(k) * kStrip + v % kVecs * kLanes * step; };
    for (int k = 0; k < inputs; k += step) {
        for (int v = 0; v < VECS; v += kVecs) __builtin_prefetch(reinterpret_cast<const char*>(at(v, k)) + kFetch);
        if constexpr (!kPairs<T>) {
            vf w[VECS];
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) w[v] = load_floats(at(v, k));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) add(x[r * stride + k], w, sum[r]);
        } else if constexpr (std::is_same_v<Input<T>, bf16>) {
            vu w[VECS];
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) w[v] = load<vu>(at(v, k));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) add(x + r * stride + k, w, sum[r]);
        } else {
            vf w[VECS];
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) w[v] = first_of(load<vu>(at(v, k)));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) add(x[r * stride + k], w, sum[r]);
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) w[v] = second_of(load<vu>(at(v, k)));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) add(x[r * stride + k + 1], w, sum[r]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECS; v++) sums[r * out_stride + v] = sum[r][v];
}

// Strips per tile for a number of rows: as many as fit into registers, and enough sums to hide the latency of one.
constexpr int tile_strips(int rows) {
    if (kLanes == 16) return 4;
    return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

// The maximum number of rows of a tile. Input buffers have so many spare rows.
#if defined(DRAFTPOOL_AMX)
constexpr int kRows = 16;
#else
constexpr int kRows = kLanes == 16 ? 6 : 5;
#endif

// Sums of ROWS rows and STRIPS strips, [ROWS][STRIPS * kVecs].
template <class T, int ROWS, int STRIPS>
inline void tiles(const Input<T>* x, size_t stride, const Linear<T>& linear, int strip, vf* sums) {
    constexpr int side = std::min(STRIPS, tile_strips(ROWS));
    for (int s = 0; s < STRIPS; s += side)
        tile<T, ROWS, side * kVecs>(x, stride, linear.strip(strip + s), linear.inputs, sums + s * kVecs, STRIPS * kVecs);
}

template <class T, int STRIPS>
void tiles(const Input<T>* x, size_t stride, int rows, const Linear<T>& linear, int strip, vf* sums) {
    switch (rows) {
        case 6: return tiles<T, 6, STRIPS>(x, stride, linear, strip, sums);
        case 5: return tiles<T, 5, STRIPS>(x, stride, linear, strip, sums);
        case 4: return tiles<T, 4, STRIPS>(x, stride, linear, strip, sums);
        case 3: return tiles<T, 3, STRIPS>(x, stride, linear, strip, sums);
        case 2: return tiles<T, 2, STRIPS>(x, stride, linear, strip, sums);
        case 1: return tiles<T, 1, STRIPS>(x, stride, linear, strip, sums);
    }
}

// Sums of up to kRows rows and 1, 2 or 4 strips.
template <class T>
void sums_of_strips(const Input<T>* x, size_t stride, int rows, const Linear<T>& linear, int strip, int strips, vf* sums) {
    switch (strips) {
        case 4: return tiles<T, 4>(x, stride, rows, linear, strip, sums);
        case 2: return tiles<T, 2>(x, stride, rows, linear, strip, sums);
        case 1: return tiles<T, 1>(x, stride, rows, linear, strip, sums);
    }
}

// The same for weights in blocks, of up to kWideRows rows from `first` on.
inline void sums_of_quantized(InputBlocks& x, int first, int rows, const Strip* strips, int inputs, int count, vf* sums) {
    const BlockTiles tiles{rows};
    for (int s = 0; s < count; s++)
        with_format(Format(strips[s].format), [&](auto f) {
            using C = Codec<f()>;
            for (int v = 0; v < kVecs; v++)
                tiles.product<C>(&x.at(0, first), x.rows, strips[s].panels + v * C::panel_bytes(inputs), inputs / kBlockInputs,
                                 sums + s * kVecs + v, count * kVecs);
        });
}

// The same of either kind plus the bias. Separate from the code that uses the sums, so that it is compiled once.
template <class T>
__attribute__((noinline)) void biased_sums(const Rows<T>& x, int first, int rows, const Linear<T>& linear, int strip, int strips, vf* sums) {
    if (linear.quantized)
        sums_of_quantized(*x.blocks, first, rows, linear.quantized + strip, linear.inputs, strips, sums);
    else
        sums_of_strips<T>(x.dense + first * x.stride, x.stride, rows, linear, strip, strips, sums);
    if (!linear.bias) return;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < strips * kVecs; v++, sums++) *sums += load_floats(linear.bias + strip * kStrip + v * kLanes);
}

// Fetches what a thread will read first of a matrix, bit by bit.
template <class T>
class Ahead {
   public:
    Ahead(const Linear<T>& next, int thread, int num_threads) {
        const int strip = std::min(share(next.num_units(), thread, num_threads).begin * next.unit, next.num_strips() - 1);
        at_ = next.quantized ? reinterpret_cast<const char*>(next.quantized[strip].panels) : reinterpret_cast<const char*>(next.strip(strip));
        end_ = at_ + kMost;
    }

    void operator()() {
        if (at_ == end_) return relax();
        for (const char* stop = std::min(at_ + kStep, end_); at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
    }

   private:
    static constexpr int kStep = 1024, kMost = 64 << 10;
    const char *at_, *end_;
};

// Computes this thread's share of the strips for all rows, in as few tiles of nearly equal size as possible. Calls
// emit(row, strip, sums of that row, number of strips) with 1, 2 or 4 strips: whole units, or the first strips of one.
template <class T, class Emit>
void multiply(const Rows<T>& x, int rows, const Linear<T>& linear, int thread, Pool& pool, const Emit& emit) {
    const int most = linear.quantized ? kWideRows : kRows, at_once = linear.quantized ? 1 : 4 / linear.unit;
    const int num_strips = linear.num_strips(), num_tiles = (rows + most - 1) / most;
    vf sums[kWideRows * 4 * kVecs];
    for (Range units; pool.take(thread, linear.num_units(), at_once, units);)
        for (int strip = linear.unit * units.begin, end = std::min(linear.unit * units.end, num_strips), strips; strip < end; strip += strips) {
            strips = end - strip == 3 ? 2 : end - strip;
            for (int t = 0; t < num_tiles; t++) {
                const Range own = share(rows, t, num_tiles);
                biased_sums(x, own.begin, own.end - own.begin, linear, strip, strips, sums);
                for (int r = own.begin; r < own.end; r++) emit(r, strip, sums + (r - own.begin) * strips * kVecs, strips);
            }
        }
}

}  // namespace dp
