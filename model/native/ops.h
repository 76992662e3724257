// Operations on one row between two matrix products, and their buffers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "linear.h"

namespace dp {

enum class Activation : int { silu, gelu, gelu_tanh, relu };

inline int padded(int n) { return (n + 31) & ~31; }

template <class T>
struct Buffer {
    T* data = nullptr;
    size_t stride = 0;
    // [rows][width padded to whole vectors]. Memory is reused. Columns beyond `width`, and the spare rows that a tile
    // may read, are zero.
    void resize(int rows, int width) {
        stride = padded(width);
        rows += kRows - 1;
        if (rows * stride <= held_ && width == width_) return;
        held_ = std::max(held_, rows * stride + rows * stride / 4);
        width_ = width;
        memory_.reset(data = static_cast<T*>(std::aligned_alloc(64, (held_ * sizeof(T) + 63) & ~size_t(63))));
        std::memset(static_cast<void*>(data), 0, held_ * sizeof(T));
    }
    T* row(int r) const { return data + r * stride; }

   private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t held_ = 0;
    int width_ = -1;
};

// Memory that only grows, from the beginning of a cache line on: registers that cross lines cost twice.
class Floats {
   public:
    float* take(size_t count) {
        if (16 * lines_.size() < count) lines_.resize((count + 15) / 16);
        return reinterpret_cast<float*>(lines_.data());
    }

   private:
    struct alignas(64) Line {
        float at[16];
    };
    std::vector<Line> lines_;
};

// The inputs of a product: what it multiplies, or blocks if its weights are in blocks.
template <class T>
struct Inputs {
    Buffer<Input<T>> dense;
    InputBlocks blocks;

    void resize(int rows, int width) { dense.resize(rows, width), blocks.resize(rows, width); }
    Rows<T> rows() { return {dense.data, dense.stride, &blocks}; }

    // Rounds blocks `begin` to `end` of a row.
    void quantize_blocks(int row, int begin, int end) {
        for (int block = begin; block < end; block++) quantize(dense.row(row) + block * kBlockInputs, blocks.at(block, row));
    }
};

inline float inverse_rms(const float* x, int n, float eps) {
    vf squares = {};
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) squares = fma(load_floats(x + i), load_floats(x + i), squares);
    float total = sum(squares);
    for (; i < n; i++) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / n + eps);
}

template <class T>
inline void rms_norm(const float* x, const float* weight, int n, float eps, T* out) {
    const float scale = inverse_rms(x, n, eps);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store_floats(out + i, load_floats(x + i) * scale * load_floats(weight + i));
    for (; i < n; i++) narrow(out + i, x[i] * scale * weight[i]);
}

inline vf activate(Activation kind, vf x) {
    switch (kind) {
        case Activation::silu: return x / (1.0f + exponential(-x));
        case Activation::gelu_tanh: return 0.5f * x * (1.0f + tangent(0.797884560802865f * (x + 0.044715f * x * x * x)));
        case Activation::relu: return select<vf>(x > splat(0.0f), x, splat(0.0f));
        case Activation::gelu:
            for (int i = 0; i < kLanes; i++) x[i] *= 0.5f * (1.0f + std::erf(x[i] * 0.707106781186547f));
    }
    return x;
}

// Rotates the halves of one head by the angles of its position.
template <class T>
inline void rotate(const float* x, const float* angles, int head_dim, T* out) {
    const int half = head_dim / 2;
    const float *y = x + half, *cosine = angles, *sine = angles + half;
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const vf a = load_floats(x + i), b = load_floats(y + i), c = load_floats(cosine + i), s = load_floats(sine + i);
        store_floats(out + i, a * c - b * s), store_floats(out + half + i, b * c + a * s);
    }
    for (; i < half; i++) narrow(out + i, x[i] * cosine[i] - y[i] * sine[i]), narrow(out + half + i, y[i] * cosine[i] + x[i] * sine[i]);
}

template <class T>
inline void narrow_row(const float* x, int n, T* out) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store_floats(out + i, load_floats(x + i));
    for (; i < n; i++) narrow(out + i, x[i]);
}

}  // namespace dp
