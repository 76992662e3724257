// Runs a range of layers over a ragged batch on all threads, in phases separated by barriers. Hidden states between
// layers are float; the inputs of matrix products are T.
#pragma once
#include "layer.h"
#include "sampling.h"

namespace dp {

template <class T>
class Roller;

constexpr int kGatedStrips = 4;  // of gate and up, whose products are one block of inputs
constexpr int kShared = 4;  // with so many heads of tasks per thread, no head is shared

template <class T>
struct Decoder {
    Shape shape;
    std::vector<Layer<T>> layers;
    const float* norm;
    Linear<T> head;
    const T* embedding;  // [vocab][hidden]; null: in blocks, or tied to the head
    const Strip* embedding_blocks;
    Columns columns;  // of the logits
    Pool* pool;
    Workspace<T> work;

    struct Pass {
        float* hidden;  // [tokens][shape.hidden]
        int tokens;
        std::vector<Row> rows;
        std::vector<Task> tasks;
        int num_segments;  // segments that a head of a task is split into for several threads; 1: not split
        size_t partials;   // floats of the partial results of a head of a task, where it is split
        T *const *keys, *const *values;  // per layer, [kv_heads][slots][dim]
        size_t num_slots;
        const float* const* angles;      // per layer, [positions][2][head_dim / 2]: cosines, sines
    };

    void embed(const int64_t* ids, int count, float* out) const {
        const float scale = shape.embedding_scale ? shape.embedding_scale : 1.0f;
        const Strip* blocks = embedding_blocks ? embedding_blocks : embedding ? nullptr : head.quantized;
        for (int t = 0; t < count; t++) {
            const int64_t id = ids[t];
            const int lane = int(id % kStrip);
            float* row = out + size_t(t) * shape.hidden;
            if (blocks) {
                read_strip(blocks[id / kStrip], lane, shape.hidden, row);
                for (int k = 0; k < shape.hidden; k++) row[k] *= scale;
                continue;
            }
            const T* strip = embedding ? embedding + size_t(id) * shape.hidden : head.strip(int(id / kStrip));
            for (int k = 0; k < shape.hidden; k++) row[k] = scale * widen(embedding ? strip[k] : strip[place(k, lane)]);
        }
    }

    void run(Pass& pass, int start, int stop) {
        prepare(pass);
        pool->run([&](int thread) {
            for (int l = start; l < stop; l++) layer(pass, l, thread);
        });
    }

    // Scores of chosen rows of hidden states. index: [count]; out: [count][head_size].
    void logits(const float* hidden, const int64_t* index, int count, float* out) {
        reserve_normed(count);
        pool->run([&](int thread) { score(hidden, index, count, out, thread); });
    }

   private:
    friend class Roller<T>;

    static size_t place(int k, int lane) {
        return kPairs<T> ? size_t(k / 2) * 2 * kStrip + 2 * lane + k % 2 : size_t(k) * kStrip + lane;
    }

    static void store_strips(float* row, int strip, const vf* sums, int n) {
        for (int v = 0; v < n * kVecs; v++) store_floats(row + strip * kStrip + v * kLanes, sums[v]);
    }

    vf capped(vf scores) const {
        return shape.final_softcap ? tangent(scores / shape.final_softcap) * shape.final_softcap : scores;
    }

    void prepare(Pass& pass) {
        reserve(pass.tokens);
        pass.tasks = attention_tasks(pass.rows);
        pass.num_segments = 1;
        if (pool->size() > 1 && int(pass.tasks.size()) * shape.kv_heads < kShared * pool->size()) share_segments(pass);
    }

    // Splits heads into segments if there are too few heads of tasks to keep all threads busy.
    void share_segments(Pass& pass) {
        int most = 0;
        for (const Task& task : pass.tasks) {
            pass.num_segments = std::max(pass.num_segments, num_segments(pass.rows[task.row]));
            most = std::max(most, task.num_queries);
        }
        const size_t heads = pass.tasks.size() * shape.kv_heads, group = shape.heads / shape.kv_heads;
        pass.partials = pass.num_segments * most * group * Partial::size(shape.dim);
        work.partials = work.partials_memory.take(heads * pass.partials);
        if (work.left.size() < heads) work.left = std::vector<std::atomic<int>>(heads);
        for (auto& left : work.left) left.store(pass.num_segments, std::memory_order_relaxed);
    }

    void score(const float* hidden, const int64_t* index, int count, float* out, int thread) {
        const Rows<T> x = normed_rows([&](int r) { return hidden + index[r] * shape.hidden; }, norm, head, count, thread);
        multiply(x, count, head, thread, *pool, [&](int row, int strip, vf* sums, int n) {
            for (int v = 0; v < n * kVecs; v++) put(out + size_t(row) * shape.head_size, strip * kStrip + v * kLanes, shape.head_size, capped(sums[v]));
        });
        pool->barrier();
    }

    static void put(float* row, int column, int width, vf value) {
        if (column + kLanes <= width) return store_floats(row + column, value);
        for (int i = 0; column + i < width; i++) row[column + i] = value[i];
    }

    static void add(float* row, int column, int width, vf value) {
        if (column + kLanes <= width) return store_floats(row + column, load_floats(row + column) + value);
        for (int i = 0; column + i < width; i++) row[column + i] += value[i];
    }

    void reserve(int tokens) {
        reserve_normed(tokens);
        work.query.resize(tokens, shape.heads * shape.dim);
        work.attended.resize(tokens, shape.heads * shape.head_dim);
        work.inner.resize(tokens, shape.inner);
        work.qkv.resize(tokens, (shape.heads + 2 * shape.kv_heads) * shape.head_dim);
        work.branch.resize(tokens, shape.hidden);
        work.scratch.resize(pool->size());
    }

    void reserve_normed(int rows) {
        work.normed.resize(rows, shape.hidden);
        work.alone.resize(pool->size());
        for (Inputs<T>& own : work.alone) own.resize(1, shape.hidden);
    }

    void layer(Pass& pass, int l, int thread) {
        const Layer<T>& weights = layers[l];
        auto hidden = [&](int t) { return pass.hidden + size_t(t) * shape.hidden; };
        const AttentionView<T> view = attention_view(pass, weights, l);
        KeysAhead<T> ahead(view, pass.rows, pass.tasks, pass.num_segments, share(num_pieces(pass), thread, pool->size()));
        Rows<T> x = normed_rows(hidden, weights.attention_norm, weights.qkv, pass.tokens, thread);
        multiply(x, pass.tokens, weights.qkv, thread, *pool, [&](int row, int strip, vf* sums, int n) {
            store_strips(work.qkv.row(row), strip, sums, n);
            if (row == 0) ahead.fetch(), ahead.fetch();
        });
        pool->barrier();
        place_heads(pass, weights, l, thread);
        pool->barrier();
        attention(pass, view, ahead, thread);
        pool->barrier(fetch(weights.out, thread));
        if (!view.rounds) quantize_rows(work.attended, weights.out, pass.tokens, thread);
        branch(pass, work.attended, weights.out, weights.attention_post_norm, weights.gate_up, thread);
        x = normed_rows(hidden, weights.mlp_norm, weights.gate_up, pass.tokens, thread);
        multiply(x, pass.tokens, weights.gate_up, thread, *pool, [&](int row, int strip, vf* sums, int n) {
            store_gated(weights.down, row, strip, sums, n);
        });
        pool->barrier(fetch(weights.down, thread));
        branch(pass, work.inner, weights.down, weights.mlp_post_norm, l + 1 < int(layers.size()) ? layers[l + 1].qkv : head, thread);
    }

    Ahead<T> fetch(const Linear<T>& next, int thread) const { return {next, thread, pool->size()}; }

    // Normalizes rows of hidden states for a product. One row is not worth a barrier: each thread does it for itself.
    template <class Hidden>
    Rows<T> normed_rows(const Hidden& hidden, const float* weight, const Linear<T>& linear, int rows, int thread) {
        Inputs<T>& x = rows == 1 ? work.alone[thread] : work.normed;
        const Range mine = rows == 1 ? Range{0, 1} : share(rows, thread, pool->size());
        for (int r = mine.begin; r < mine.end; r++) {
            rms_norm(hidden(r), weight, shape.hidden, shape.norm_eps, x.dense.row(r));
            if (linear.quantized) x.quantize_blocks(r, 0, linear.inputs / kBlockInputs);
        }
        if (rows > 1) pool->barrier(fetch(linear, thread));
        return x.rows();
    }

    // Rounds the input of a product with weights in blocks. All is complete when it returns.
    void quantize_rows(Inputs<T>& x, const Linear<T>& linear, int rows, int thread) {
        if (!linear.quantized) return;
        const int blocks = linear.inputs / kBlockInputs;
        const Range mine = share(rows * blocks, thread, pool->size());
        for (int i = mine.begin; i < mine.end; i++) x.quantize_blocks(i / blocks, i % blocks, i % blocks + 1);
        pool->barrier();
    }

    // Stores the products of a unit of gate and up, activated, as inputs of `next`.
    void store_gated(const Linear<T>& next, int row, int strip, const vf* sums, int n) {
        float block[kBlockInputs] = {};
        for (int s = 0; s < n / 2; s++, sums += 2 * kVecs)
            for (int v = 0; v < kVecs; v++) store_floats(block + s * kStrip + v * kLanes, activate(shape.activation, sums[v]) * sums[kVecs + v]);
        if (next.quantized) return quantize(block, work.inner.blocks.at(strip / kGatedStrips, row));
        narrow_row(block, n / 2 * kStrip, work.inner.dense.row(row) + strip / 2 * kStrip);
    }

    // Adds a matrix product, optionally normalized, to the hidden states. All are complete when it returns. next: the
    // matrix that follows.
    void branch(const Pass& pass, Inputs<T>& x, const Linear<T>& linear, const float* post_norm, const Linear<T>& next, int thread) {
        multiply(x.rows(), pass.tokens, linear, thread, *pool, [&](int row, int strip, vf* sums, int n) {
            if (post_norm) return store_strips(work.branch.row(row), strip, sums, n);
            for (int v = 0; v < n * kVecs; v++)
                add(pass.hidden + size_t(row) * shape.hidden, strip * kStrip + v * kLanes, shape.hidden, sums[v]);
        });
        pool->barrier(fetch(next, thread));
        if (!post_norm) return;
        const Range mine = share(pass.tokens, thread, pool->size());
        for (int t = mine.begin; t < mine.end; t++) {
            float *own = work.branch.row(t), *hidden = pass.hidden + size_t(t) * shape.hidden;
            rms_norm(own, post_norm, shape.hidden, shape.norm_eps, own);
            for (int i = 0; i < shape.hidden; i++) hidden[i] += own[i];
        }
        pool->barrier();
    }

    // Normalizes and rotates queries and keys, and writes keys and values to their slots.
    void place_heads(const Pass& pass, const Layer<T>& weights, int l, int thread) {
        const int num_heads = shape.heads + 2 * shape.kv_heads, size = shape.head_dim;
        float* scratch = work.scratch[thread].take(2 * size);
        const Range mine = share(pass.tokens * num_heads, thread, pool->size());
        const Row* row = pass.rows.data();
        for (int piece = mine.begin; piece < mine.end; piece++) {
            const int token = piece / num_heads, h = piece % num_heads;
            while (token >= row->first + row->num_new) row++;
            const int position = row->total - row->num_new + token - row->first;
            const float* x = work.qkv.row(token) + size_t(h) * size;
            const int kv = h - shape.heads, v = kv - shape.kv_heads;
            auto slot = [&](T* const* of, int head) { return of[l] + (head * pass.num_slots + row->slots[position]) * shape.dim; };
            if (v >= 0) {
                narrow_row(x, size, slot(pass.values, v));
                continue;
            }
            if (weights.qk_norm) rms_norm(x, weights.qk_norm + size_t(h) * size, size, shape.norm_eps, scratch), x = scratch;
            const float* angles = pass.angles[l] + size_t(position) * size;
            if (kv >= 0) rotate(x, angles, size, slot(pass.keys, kv));
            else place_query(x, angles, scratch + size, work.query.row(token) + size_t(h) * shape.dim);
        }
    }

    // Rotates a query into the order of dimensions that scores are computed in.
    void place_query(const float* x, const float* angles, float* rotated, Input<T>* out) const {
        if (std::is_same_v<Input<T>, T>) return rotate(x, angles, shape.head_dim, out);
        rotate(x, angles, shape.head_dim, rotated);
        for (int d = 0; d < shape.head_dim; d++) narrow(out + query_place<T>(d), rotated[d]);
    }

    AttentionView<T> attention_view(const Pass& pass, const Layer<T>& weights, int l) {
        const bool rounds = weights.out.quantized && shape.heads / shape.kv_heads * shape.head_dim % kBlockInputs == 0;
        return {work.query.data, pass.keys[l], pass.values[l], &work.attended, shape.heads, shape.kv_heads, shape.dim, shape.head_dim,
                weights.window, rounds, pass.num_slots, shape.query_scale, shape.attention_softcap};
    }

    int num_pieces(const Pass& pass) const { return int(pass.tasks.size()) * shape.kv_heads * pass.num_segments; }

    void attention(Pass& pass, const AttentionView<T>& view, KeysAhead<T>& ahead, int thread) {
        const int segments = pass.num_segments;
        for (Range piece; pool->take(thread, num_pieces(pass), 1, piece);) {
            const int at = piece.begin / segments;
            const Task& task = pass.tasks[at / shape.kv_heads];
            const HeadTask<T> own{view, pass.rows[task.row], task, ahead, at % shape.kv_heads};
            if (segments == 1)
                own.attend(work.scratch[thread]);
            else
                own.attend(piece.begin % segments, segments, work.scratch[thread], work.partials + at * pass.partials, work.left[at]);
        }
    }
};

}  // namespace dp
