// The C interface that model/native/library.py calls: plain structs and pointers, no exceptions, no Python.
#include "decoder.h"
#include "repack.h"
#include "roll.h"
#include "sampling.h"

using namespace dp;

namespace {

struct LinearSpec {
    const void* strips;
    const float* bias;
    const Strip* quantized;
    int32_t outputs, inputs;
};

struct LayerSpec {
    const float *attention_norm, *qk_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm;
    LinearSpec qkv, out, gate_up, down;
    int32_t window;
};

struct ModelSpec {
    int32_t head_size, hidden, inner, layers, heads, kv_heads, head_dim, dim, activation, is_bf16;
    float norm_eps, query_scale, embedding_scale, attention_softcap, final_softcap;
    const LayerSpec* layer;
    const float* norm;
    LinearSpec head;
    const void* embedding;
    const Strip* embedding_blocks;
    const int64_t* token_ids;
};

struct BatchSpec {
    const int64_t* const* slots;
    const int64_t *totals, *num_new;
    int32_t num_rows, num_tokens;
    int64_t num_slots;
    void *const *keys, *const *values;
    const float* const* angles;
};

struct Model {
    virtual ~Model() = default;
    virtual void embed(const int64_t* ids, int count, float* out) = 0;
    virtual void run(float* hidden, const BatchSpec& batch, int start, int stop) = 0;
    virtual void logits(const float* hidden, const int64_t* index, int count, float* out) = 0;
    virtual void roll(const BatchSpec& batch, const int64_t* ids, const Picking* how, Limit* limits, int depth, float* boundary, Pick* out) = 0;
};

template <class T>
Linear<T> linear(const LinearSpec& spec, int unit = 2) {
    return {static_cast<const T*>(spec.strips), spec.bias, spec.quantized, spec.outputs, spec.inputs, unit};
}

template <class T>
struct Typed final : Model {
    Decoder<T> decoder;
    typename Decoder<T>::Pass pass;

    Typed(const ModelSpec& s, Pool* pool) {
        decoder.shape = {s.head_size, s.hidden, s.inner, s.layers, s.heads, s.kv_heads, s.head_dim, s.dim, Activation(s.activation),
                         s.norm_eps, s.query_scale, s.embedding_scale, s.attention_softcap, s.final_softcap};
        for (int l = 0; l < s.layers; l++) {
            const LayerSpec& from = s.layer[l];
            decoder.layers.push_back({from.attention_norm, from.qk_norm, from.attention_post_norm, from.mlp_norm, from.mlp_post_norm,
                                      linear<T>(from.qkv), linear<T>(from.out), linear<T>(from.gate_up, kGatedStrips), linear<T>(from.down),
                                      from.window});
        }
        decoder.norm = s.norm;
        decoder.head = linear<T>(s.head);
        decoder.embedding = static_cast<const T*>(s.embedding);
        decoder.embedding_blocks = s.embedding_blocks;
        decoder.columns = {s.head_size, s.token_ids};
        decoder.pool = pool;
    }

    void embed(const int64_t* ids, int count, float* out) override { decoder.embed(ids, count, out); }

    void run(float* hidden, const BatchSpec& batch, int start, int stop) override {
        take(batch);
        pass.hidden = hidden;
        decoder.run(pass, start, stop);
    }

    void roll(const BatchSpec& batch, const int64_t* ids, const Picking* how, Limit* limits, int depth, float* boundary, Pick* out) override {
        take(batch);
        std::vector<Draft> drafts;
        for (int r = 0; r < batch.num_rows; out += limits[r++].length) drafts.push_back({how[r], &limits[r], out, r});
        Roller<T>(decoder, pass, drafts, boundary).roll(ids, depth);
    }

    void take(const BatchSpec& batch) {
        pass.tokens = batch.num_tokens;
        pass.rows.clear();
        int first = 0;
        for (int r = 0; r < batch.num_rows; r++) {
            pass.rows.push_back({batch.slots[r], int(batch.totals[r]), int(batch.num_new[r]), first});
            first += int(batch.num_new[r]);
        }
        pass.keys = reinterpret_cast<T* const*>(batch.keys);
        pass.values = reinterpret_cast<T* const*>(batch.values);
        pass.num_slots = size_t(batch.num_slots);
        pass.angles = batch.angles;
    }

    void logits(const float* hidden, const int64_t* index, int count, float* out) override {
        decoder.logits(hidden, index, count, out);
    }
};

}  // namespace

extern "C" {

// The instruction set that the library was compiled for.
const char* dp_features() { return DRAFTPOOL_ISA; }

Pool* dp_pool(int num_threads) { return new Pool(num_threads); }

Model* dp_model(const ModelSpec* spec, Pool* pool) {
    if (spec->is_bf16) return new Typed<bf16>(*spec, pool);
    return new Typed<float>(*spec, pool);
}

void dp_model_free(Model* model) { delete model; }

void dp_embed(Model* model, const int64_t* ids, int count, float* out) { model->embed(ids, count, out); }

void dp_run(Model* model, float* hidden, const BatchSpec* batch, int start, int stop) { model->run(hidden, *batch, start, stop); }

void dp_logits(Model* model, const float* hidden, const int64_t* index, int count, float* out) {
    model->logits(hidden, index, count, out);
}

// token_ids: of the columns of the logits; null: column c is token c.
void dp_pick(Pool* pool, const float* logits, int count, int width, const int64_t* token_ids, const Picking* how, int wants_confidence,
             Pick* out) {
    const Columns columns{width, token_ids};
    auto work = [&](int thread) {
        for (int r = thread; r < count; r += pool->size()) out[r] = pick(logits + size_t(r) * width, columns, how[r], wants_confidence);
    };
    count == 1 ? void(out[0] = pick(logits, columns, how[0], wants_confidence)) : pool->run(work);
}

// Embeds, runs all layers, and picks tokens from chosen rows, in one call.
void dp_step(Model* model, Pool* pool, const BatchSpec* batch, const int64_t* ids, float* hidden, int num_layers, const int64_t* index,
             int count, float* logits, int width, const int64_t* token_ids, const Picking* how, Pick* out) {
    dp_embed(model, ids, batch->num_tokens, hidden);
    dp_run(model, hidden, batch, 0, num_layers);
    dp_logits(model, hidden, index, count, logits);
    dp_pick(pool, logits, count, width, token_ids, how, false, out);
}

// Drafts up to limits[r].length tokens for every row r, into out, where each row has as many places.
void dp_roll(Model* model, const BatchSpec* batch, const int64_t* ids, const Picking* how, Limit* limits, int depth, float* boundary,
             Pick* out) {
    model->roll(*batch, ids, how, limits, depth, boundary, out);
}

// Reads `size` bytes (a multiple of 64) once with all threads, to measure memory bandwidth.
uint64_t dp_read(Pool* pool, const void* data, uint64_t size) {
    std::vector<uint64_t> totals(pool->size());
    pool->run([&](int thread) {
        const uint64_t lines = size / 64, begin = lines * thread / pool->size(), end = lines * (thread + 1) / pool->size();
        const char* from = static_cast<const char*>(data);
        vul sums[4] = {};
        for (const char* at = from + begin * 64; at < from + end * 64; at += sizeof(vul)) sums[(at - from) / sizeof(vul) % 4] += load<vul>(at);
        for (int i = 0; i < kLanes / 2; i++) totals[thread] += sums[0][i] + sums[1][i] + sums[2][i] + sums[3][i];
    });
    uint64_t total = 0;
    for (uint64_t part : totals) total += part;
    return total;
}

uint64_t dp_strip_bytes(int format, int inputs) { return strip_bytes(Format(format), inputs); }

// Packs rows of a file into strips of sixteen, `step` bytes apart, whose memory holds zeros.
void dp_pack(Pool* pool, int format, const uint8_t* rows, uint64_t row_bytes, int count, int inputs, uint8_t* strips, uint64_t step) {
    const int num_strips = (count + kStrip - 1) / kStrip;
    pool->run([&](int thread) {
        const Range mine = share(num_strips, thread, pool->size());
        for (int s = mine.begin; s < mine.end; s++)
            pack_strip(Format(format), rows + s * kStrip * row_bytes, row_bytes, std::min(kStrip, count - s * kStrip), inputs, strips + s * step);
    });
}

// Products of rows of floats with one matrix in blocks. x: [rows][inputs]; out: [rows][outputs].
void dp_product(Pool* pool, const LinearSpec* spec, const float* x, int rows, float* out) {
    const Linear<float> own = linear<float>(*spec);
    InputBlocks blocks;
    blocks.resize(rows, own.inputs);
    for (int i = 0; i < rows * own.inputs / kBlockInputs; i++)
        quantize(x + size_t(i) * kBlockInputs, blocks.at(i % (own.inputs / kBlockInputs), i / (own.inputs / kBlockInputs)));
    pool->run([&](int thread) {
        multiply(Rows<float>{nullptr, 0, &blocks}, rows, own, thread, *pool, [&](int row, int strip, vf* sums, int n) {
            for (int i = 0; i < n * kStrip && strip * kStrip + i < own.outputs; i++)
                out[size_t(row) * own.outputs + strip * kStrip + i] = sums[i / kLanes][i % kLanes];
        });
    });
}
}
