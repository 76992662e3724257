// The parts of a model, and the buffers of a pass.
#pragma once
#include "attention.h"
#include "ops.h"

namespace dp {

struct Shape {
    int head_size, hidden, inner, layers, heads, kv_heads, head_dim, dim;  // dim: head_dim padded as in the KV
    Activation activation;
    float norm_eps, query_scale, embedding_scale, attention_softcap, final_softcap;  // 0: none
};

template <class T>
struct Layer {
    const float *attention_norm, *qk_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm;  // null: none
    Linear<T> qkv, out, gate_up, down;  // gate_up: alternating strips of gate and up
    int window;           // 0: none
};

// The buffers of one pass; their rows are the flat tokens.
template <class T>
struct Workspace {
    Buffer<Input<T>> query;
    Inputs<T> normed, attended, inner;
    std::vector<Inputs<T>> alone;  // one per thread: the only row, normalized
    Buffer<float> qkv, branch, logits;
    std::vector<Floats> scratch;  // one per thread
    Floats partials_memory;       // partial results of attention segments shared by several threads
    float* partials;
    std::vector<std::atomic<int>> left;  // unfinished segments of each head of each task
};

}  // namespace dp
