// Ragged attention. Each (query, head) reads its keys through the slots of its row, in blocks aligned to absolute
// positions. Blocks form segments whose softmaxes are merged in ascending order. The terms of each sum and their order
// do not depend on other queries or on which thread computes a segment, so batch width, chunking and the number of
// threads do not change a bit of the result.
#pragma once
#include <atomic>
#include <limits>
#include <vector>

#include "keys.h"

namespace dp {

// A register holds twice as many bf16 as floats. Unpacking puts the first of each pair before the second.
inline int lane(const float*, int d) { return d; }
inline int lane(const bf16*, int d) { return (d & ~(2 * kLanes - 1)) + (d & 1) * kLanes + (d & (2 * kLanes - 1)) / 2; }

// The place of dimension d in a query, so that it matches the unpacked key.
template <class T>
inline int query_place(int d) {
    return std::is_same_v<Input<T>, T> ? d : lane(static_cast<const T*>(nullptr), d);
}

// Partial dot products of one query and one key; the lanes are added later.
template <int DIM>
inline vf partial_dot(const float* q, const float* k, int dim) {
    vf sum = {};
    for (int d = 0; d < (DIM ? DIM : dim); d += kLanes) sum = fma(load_floats(q + d), load_floats(k + d), sum);
    return sum;
}

template <int DIM>
inline vf partial_dot(const float* q, const bf16* k, int dim) {
    vf sum = {};
    for (int d = 0; d < (DIM ? DIM : dim); d += 2 * kLanes) {
        const vu pairs = load<vu>(k + d);
        sum = fma(load_floats(q + d), first_of(pairs), sum);
        sum = fma(load_floats(q + d + kLanes), second_of(pairs), sum);
    }
    return sum;
}

template <int DIM>
inline vf partial_dot(const bf16* q, const bf16* k, int dim) {
    vf sum = {};
    for (int d = 0; d < (DIM ? DIM : dim); d += 2 * kLanes) sum = add_pairs(sum, load<vu>(q + d), load<vu>(k + d));
    return sum;
}

// Scores of the block of keys that starts at `begin`; -infinity outside [low, high).
template <class T, int DIM>
inline vf score_block(const AttentionView<T>& view, const Input<T>* query, const T* const* keys, int begin, int low, int high) {
    vf parts[kBlock];
#pragma GCC unroll 16
    for (int j = 0; j < kBlock; j++) parts[j] = partial_dot<DIM>(query, keys[j], view.dim);
    vf scores = sums(parts) * view.scale;
    if (view.softcap) scores = tangent(scores / view.softcap) * view.softcap;
    if (begin >= low && begin + kBlock <= high) return scores;
    vi at = vi{} + begin;
    for (int j = 0; j < kBlock; j++) at[j] += j;
    return select<vf>((at >= low) & (at < high), scores, splat(-std::numeric_limits<float>::infinity()));
}

// Replaces scores by e^(score - max) and returns their sum; `top` is the max.
inline float soften(float* scores, int count, float& top) {
    vf best = load_floats(scores), total = {};
    for (int j = 0; j < count; j += kLanes) best = select<vf>(load_floats(scores + j) > best, load_floats(scores + j), best);
    top = largest(best);
    for (int j = 0; j < count; j += kLanes) {
        vf weight = exponential(load_floats(scores + j) - top);
        store_floats(scores + j, weight);
        total += weight;
    }
    return sum(total);
}

// Adds two registers of values times a weight, bf16 unpacked as `lane` says.
inline void add_weighted(vf (&sum)[2], float weight, const float* values) {
    sum[0] = fma(splat(weight), load_floats(values), sum[0]);
    sum[1] = fma(splat(weight), load_floats(values + kLanes), sum[1]);
}

inline void add_weighted(vf (&sum)[2], float weight, const bf16* values) {
    const vu pairs = load<vu>(values);
    sum[0] = fma(splat(weight), first_of(pairs), sum[0]);
    sum[1] = fma(splat(weight), second_of(pairs), sum[1]);
}

// Processes PAIRS times two registers of the values of each key of a block.
template <class T, int PAIRS>
inline void add_values(float* out, const float* weights, const T* const* values, int first, int count) {
    vf sum[PAIRS][2];
    for (int p = 0; p < PAIRS; p++)
        for (int i = 0; i < 2; i++) sum[p][i] = load_floats(out + (2 * p + i) * kLanes);
    for (int j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int p = 0; p < PAIRS; p++) add_weighted(sum[p], weights[j], values[j] + first + 2 * p * kLanes);
    for (int p = 0; p < PAIRS; p++)
        for (int i = 0; i < 2; i++) store_floats(out + (2 * p + i) * kLanes, sum[p][i]);
}

template <class T>
inline void add_values(float* out, const float* weights, const T* const* values, int count, int dim) {
    constexpr int wide = 8 * kLanes, narrow = 2 * kLanes;
    int d = 0;
    if constexpr (kLanes == 8)
        for (; dim - d >= wide; d += wide) add_values<T, 4>(out + d, weights, values, d, count);
    for (; dim - d >= 2 * narrow; d += 2 * narrow) add_values<T, 2>(out + d, weights, values, d, count);
    if (d < dim) add_values<T, 1>(out + d, weights, values, d, count);
}

// Partial result of one query: the largest score and the sum of its softmax, and the weighted values. Sum 0: empty.
struct Partial {
    float *values, *top, *total;

    static size_t size(int dim) { return size_t(dim) + kLanes; }
    Partial(float* memory, int dim) : values(memory), top(memory + dim), total(memory + dim + 1) {}

    void clear(int dim) { std::fill(values, values + dim, 0.0f), *top = *total = 0; }

    void merge(const Partial& next, int dim) {
        if (*next.total == 0) return;
        if (*total == 0) {
            std::copy_n(next.values, size(dim), values);
            return;
        }
        const float highest = std::max(*top, *next.top);
        const vf old = exponential(splat(*top - highest)), added = exponential(splat(*next.top - highest));
        for (int d = 0; d < dim; d += kLanes)
            store_floats(values + d, fma(load_floats(next.values + d), added, load_floats(values + d) * old));
        *total = *total * old[0] + *next.total * added[0];
        *top = highest;
    }
};

// One kv head of one task.
template <class T>
struct HeadTask {
    const AttentionView<T>& view;
    const Row& row;
    const Task& task;
    KeysAhead<T>& ahead;
    const int head, group = view.heads / view.kv_heads, count = task.num_queries * group;
    const int first = row.total - row.num_new + task.query, stop = first + task.num_queries;

    int low(int i) const { return view.window ? std::max(0, first + i / group - view.window + 1) : 0; }
    int high(int i) const { return first + i / group + 1; }
    int token(int i) const { return row.first + task.query + i / group; }
    const Input<T>* query(int i) const { return view.query + (size_t(token(i)) * view.heads + head * group + i % group) * view.dim; }
    Partial partial(float* memory, int i) const { return {memory + i * Partial::size(view.dim), view.dim}; }
    size_t partials() const { return count * Partial::size(view.dim); }

    // Where the keys or values of positions `from` to `to` lie, in whole blocks. Beyond the row's last position, the last
    // key is read instead; its score is masked.
    void find(const T* base, int from, int to, const T* (&found)[kSegment]) const {
        base += size_t(head) * view.num_slots * view.dim;
        for (int at = from; at < ((to + kBlock - 1) & ~(kBlock - 1)); at++) found[at - from] = base + row.slots[std::min(at, row.total - 1)] * view.dim;
    }

    // The partial results of all queries for one segment. scratch: [count][kSegment].
    template <int DIM>
    void segment(int index, float* scratch, float* partials) const {
        const int from = std::max(index * kSegment, low(0) & ~(kBlock - 1)), to = std::min((index + 1) * kSegment, stop);
        const T *keys[kSegment], *values[kSegment];
        find(view.keys, from, to, keys), find(view.values, from, to, values);
        auto is_of = [&](int i, int begin) { return begin < high(i) && begin + kBlock > low(i); };
        auto scores = [&](int i) { return scratch + size_t(i) * kSegment - index * kSegment; };
        for (int begin = from; begin < to; begin += kBlock) {
            ahead.go_on();
            for (int i = 0; i < count; i++)
                if (is_of(i, begin)) store_floats(scores(i) + begin, score_block<T, DIM>(view, query(i), keys + begin - from, begin, low(i), high(i)));
        }
        for (int i = 0; i < count; i++) {
            Partial part = partial(partials, i);
            part.clear(view.dim);
            const int begin = std::max(from, low(i) & ~(kBlock - 1)), end = std::min(to, high(i));
            if (begin < end) *part.total = soften(scores(i) + begin, end - begin, *part.top);
        }
        for (int begin = from; begin < to; begin += kBlock)
            for (int i = 0; i < count; i++)
                if (is_of(i, begin)) add_values(partial(partials, i).values, scores(i) + begin, values + begin - from, std::min(kBlock, std::min(high(i), to) - begin), view.dim);
    }

    void output(float* partials) const {
        for (int i = 0; i < count; i++) {
            const Partial all = partial(partials, i);
            Input<T>* out = view.output->dense.row(token(i)) + (head * group + i % group) * view.head_dim;
            for (int d = 0; d < view.head_dim; d++) narrow(out + d, all.values[lane(view.keys, d)] / *all.total);
        }
        const int blocks = group * view.head_dim / kBlockInputs;
        for (int q = 0; view.rounds && q < task.num_queries; q++)
            view.output->quantize_blocks(row.first + task.query + q, head * blocks, (head + 1) * blocks);
    }

    // Common head sizes have specialized loops.
    void segment_of(int index, float* scratch, float* partials) const {
        switch (view.dim) {
            case 64: return segment<64>(index, scratch, partials);
            case 128: return segment<128>(index, scratch, partials);
            default: return segment<0>(index, scratch, partials);
        }
    }

    // Computes all segments in order.
    void attend(Floats& scratch) const {
        const size_t size = size_t(count) * kSegment;
        float *scores = scratch.take(size + 2 * partials()), *all = scores + size, *own = all + partials();
        const int begin = low(0) / kSegment, end = (stop - 1) / kSegment + 1;
        segment_of(begin, scores, all);
        for (int s = begin + 1; s < end; s++) segment_of(s, scores, own), merge(all, own);
        output(all);
    }

    // Computes one segment; the last thread to finish merges them. memory: [num_segments][partials()]. left: segments
    // of this head of the task that are not finished.
    void attend(int index, int segments, Floats& scratch, float* memory, std::atomic<int>& left) const {
        const int begin = low(0) / kSegment, end = (stop - 1) / kSegment + 1;
        if (begin <= index && index < end) segment_of(index, scratch.take(size_t(count) * kSegment), memory + index * partials());
        if (left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
        left.store(segments, std::memory_order_relaxed);
        float* all = memory + begin * partials();
        for (int s = begin + 1; s < end; s++) merge(all, memory + s * partials());
        output(all);
    }

    void merge(float* all, float* next) const {
        for (int i = 0; i < count; i++) partial(all, i).merge(partial(next, i), view.dim);
    }
};

}  // namespace dp
