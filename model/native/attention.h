// Ragged attention: each (query, head) reads its own keys through the slots of its row, in blocks of sixteen that start
// at multiples of sixteen of the absolute position. What a query adds up, and in which order, does not depend on the
// other queries, so no width and no chunking changes a bit of it.
#pragma once
#include <atomic>
#include <limits>
#include <vector>

#include "linear.h"

namespace dp {

struct Row {
    const int64_t* slots;  // of positions 0 .. total - 1
    int total, num_new, first;  // first: the row's first token in the flat list
};

template <class T>
struct AttentionView {
    const T* query;  // [tokens][heads][dim]
    const T* keys;   // [kv_heads][slots][dim]
    const T* values;
    T* output;  // [tokens][out_stride], heads of head_dim, unpadded
    int heads, kv_heads, dim, head_dim, window;
    size_t num_slots, out_stride;
    float scale, softcap;  // 0: none
};

struct Task {
    int row, query, num_queries;
};

constexpr int kQueries = 16;
constexpr int kAhead = 64;  // keys between the block at hand and the one that is fetched from memory

inline std::vector<Task> attention_tasks(const std::vector<Row>& rows) {
    std::vector<Task> tasks;
    for (int r = 0; r < int(rows.size()); r++)
        for (int q = 0; q < rows[r].num_new; q += kQueries)
            tasks.push_back({r, q, std::min(kQueries, rows[r].num_new - q)});
    return tasks;
}

// Partial dot products of one query and one key; sixteen lanes that still have to be added.
template <int DIM>
inline f32x16 partial_dot(const float* q, const float* k, int dim) {
    f32x16 sum = {};
    for (int d = 0; d < (DIM ? DIM : dim); d += 16) sum += load16(q + d) * load16(k + d);
    return sum;
}

template <int DIM>
inline f32x16 partial_dot(const bf16* q, const bf16* k, int dim) {
    f32x16 sum = {};
#pragma GCC unroll 8
    for (int d = 0; d < (DIM ? DIM : dim); d += 32) {
#if defined(__AVX512BF16__)
        sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)load<u32x16>(q + d), (__m512bh)load<u32x16>(k + d));
#else
        u32x16 a = load<u32x16>(q + d), b = load<u32x16>(k + d);
        sum += (f32x16)(a << 16) * (f32x16)(b << 16);
        sum += (f32x16)(a & 0xffff0000u) * (f32x16)(b & 0xffff0000u);
#endif
    }
    return sum;
}

// Scores of sixteen keys from `begin` on; -infinity outside [low, high).
template <class T, int DIM>
inline f32x16 score_block(const AttentionView<T>& view, const T* query, const T* const (&keys)[16], int begin, int low, int high) {
    f32x16 parts[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) parts[j] = partial_dot<DIM>(query, keys[j], view.dim);
    f32x16 scores = sums(parts) * view.scale;
    if (view.softcap) scores = tanh16(scores / view.softcap) * view.softcap;
    if (begin >= low && begin + 16 <= high) return scores;
    const i32x16 at = i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + begin;
    return select<f32x16>((at >= low) & (at < high), scores, splat(-std::numeric_limits<float>::infinity()));
}

// In place: e^(score - max), and their sum.
inline float soften(float* scores, int begin, int end) {
    f32x16 best = load16(scores + begin), total = {};
    for (int j = begin; j < end; j += 16) best = select<f32x16>(load16(scores + j) > best, load16(scores + j), best);
    const float top = largest(best);
    for (int j = begin; j < end; j += 16) {
        f32x16 weight = exp16(load16(scores + j) - top);
        store16(scores + j, weight);
        total += weight;
    }
    return sum(total);
}

// Adds 32 values times a weight. bf16 leaves the even ones in the first vector and the odd ones in the second, which
// is where a shift and a mask put them; `lane` finds them again.
inline void add_weighted(f32x16 (&sum)[2], float weight, const float* values) {
    sum[0] += weight * load16(values);
    sum[1] += weight * load16(values + 16);
}

inline void add_weighted(f32x16 (&sum)[2], float weight, const bf16* values) {
    u32x16 both = load<u32x16>(values);
    sum[0] += weight * (f32x16)(both << 16);
    sum[1] += weight * (f32x16)(both & 0xffff0000u);
}

inline int lane(const float*, int d) { return d; }

inline int lane(const bf16*, int d) { return (d & ~31) + (d & 1) * 16 + (d & 31) / 2; }

// PAIRS times 32 values of each key of a block.
template <class T, int PAIRS>
inline void add_values(float* out, const float* weights, const T* const (&values)[16], int first, int count) {
    f32x16 sum[PAIRS][2];
    for (int p = 0; p < PAIRS; p++)
        for (int i = 0; i < 2; i++) sum[p][i] = load16(out + 32 * p + 16 * i);
    for (int j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int p = 0; p < PAIRS; p++) add_weighted(sum[p], weights[j], values[j] + first + 32 * p);
    for (int p = 0; p < PAIRS; p++)
        for (int i = 0; i < 2; i++) store16(out + 32 * p + 16 * i, sum[p][i]);
}

template <class T>
inline void add_values(float* out, const float* weights, const T* const (&values)[16], int count, int dim) {
    int d = 0;
    for (; dim - d >= 64; d += 64) add_values<T, 2>(out + d, weights, values, d, count);
    if (d < dim) add_values<T, 1>(out + d, weights, values, d, count);
}

template <class T>
struct BlockPointers {
    const T* at[16];
    // Beyond the row's last position the last key stands in; its score is masked.
    BlockPointers(const T* base, const AttentionView<T>& view, int head, const Row& row, int begin) {
        base += size_t(head) * view.num_slots * view.dim;
        for (int j = 0; j < 16; j++) at[j] = base + row.slots[std::min(begin + j, row.total - 1)] * view.dim;
    }

    void fetch(int dim) const {
        for (int j = 0; j < 16; j++)
            for (int d = 0; d < dim; d += 64 / int(sizeof(T))) __builtin_prefetch(at[j] + d);
    }
};

// One kv head of one task. scratch grows to the task's needs and is the thread's own.
template <class T, int DIM>
void attend(const AttentionView<T>& view, const Row& row, const Task& task, int head, std::vector<float>& scratch) {
    const int group = view.heads / view.kv_heads, count = task.num_queries * group;
    const int first = row.total - row.num_new + task.query, stop = first + task.num_queries;
    const int low = view.window ? std::max(0, first - view.window + 1) & ~15 : 0, width = (stop - low + 15) & ~15;
    scratch.resize(size_t(count) * (width + view.dim + 1));
    float* sums_of_values = scratch.data() + size_t(count) * width;
    auto scores = [&](int i) { return scratch.data() + size_t(i) * width - low; };
    auto own_low = [&](int i) { return view.window ? std::max(0, first + i / group - view.window + 1) : 0; };
    auto own_high = [&](int i) { return first + i / group + 1; };
    for (int begin = low; begin < std::min(low + kAhead, stop); begin += 16) BlockPointers<T>(view.keys, view, head, row, begin).fetch(view.dim);
    for (int begin = low; begin < stop; begin += 16) {
        BlockPointers<T>(view.values, view, head, row, begin).fetch(view.dim);
        if (begin + kAhead < stop) BlockPointers<T>(view.keys, view, head, row, begin + kAhead).fetch(view.dim);
        BlockPointers<T> keys(view.keys, view, head, row, begin);
        for (int i = 0; i < count; i++) {
            const T* query = view.query + (size_t(row.first + task.query + i / group) * view.heads + head * group + i % group) * view.dim;
            if (begin < own_high(i) && begin + 16 > own_low(i))
                store16(scores(i) + begin, score_block<T, DIM>(view, query, keys.at, begin, own_low(i), own_high(i)));
        }
    }
    float* totals = sums_of_values + size_t(count) * view.dim;
    for (int i = 0; i < count; i++) totals[i] = soften(scores(i), own_low(i) & ~15, own_high(i));
    std::fill(sums_of_values, sums_of_values + size_t(count) * view.dim, 0.0f);
    for (int begin = low; begin < stop; begin += 16) {
        BlockPointers<T> values(view.values, view, head, row, begin);
        for (int i = 0; i < count; i++)
            if (begin < own_high(i) && begin + 16 > own_low(i))
                add_values(sums_of_values + size_t(i) * view.dim, scores(i) + begin, values.at, std::min(16, own_high(i) - begin), view.dim);
    }
    for (int i = 0; i < count; i++) {
        T* out = view.output + size_t(row.first + task.query + i / group) * view.out_stride + (head * group + i % group) * view.head_dim;
        for (int d = 0; d < view.head_dim; d++) narrow(out + d, sums_of_values[size_t(i) * view.dim + lane(view.query, d)] / totals[i]);
    }
}

}  // namespace dp
