// Coupled noise and picks: Philox4x32-10 keyed by (seed, position, token / 4), G = -log(-log U), the best score.
// The twin of model/noise.py and of the picks in model/sampling.py; the words are the same, bit for bit.
#pragma once
#include <limits>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace dp {

struct Pick {
    int64_t token;
    double confidence;
};

inline u64x8 product(u64x8 word, uint32_t multiplier) {
#if defined(__AVX512F__)
    return (u64x8)_mm512_mul_epu32((__m512i)word, _mm512_set1_epi64(multiplier));
#else
    return word * uint64_t(multiplier);
#endif
}

// Words of eight neighbouring blocks of four tokens, from block `begin` on.
inline void philox(uint64_t seed, uint64_t position, uint64_t begin, u64x8 (&c)[4]) {
    const u64x8 mask = u64x8{} + 0xffffffffULL;
    uint64_t key0 = seed & 0xffffffffULL, key1 = seed >> 32;
    c[0] = (u64x8{0, 1, 2, 3, 4, 5, 6, 7} + begin) & mask;
    c[1] = u64x8{} + (position & 0xffffffffULL);
    c[2] = c[3] = u64x8{};
    for (int round = 0; round < 10; round++) {
        u64x8 first = product(c[0], 0xD2511F53u), second = product(c[2], 0xCD9E8D57u);
        c[0] = (second >> 32) ^ c[1] ^ key0;
        c[1] = second & mask;
        c[2] = (first >> 32) ^ c[3] ^ key1;
        c[3] = first & mask;
        key0 = (key0 + 0x9E3779B9u) & 0xffffffffULL;
        key1 = (key1 + 0xBB67AE85u) & 0xffffffffULL;
    }
}

// G of tokens 4 * begin .. 4 * begin + 31, as [word][block].
inline void gumbels(uint64_t seed, uint64_t position, uint64_t begin, f64x8 (&g)[4]) {
    u64x8 words[4];
    philox(seed, position, begin, words);
    for (int i = 0; i < 4; i++) {
        f64x8 u = (__builtin_convertvector(words[i], f64x8) + 0.5) * 0x1p-32;
        g[i] = -log8(-log8(u));
    }
}

// Largest noisy score of scaled logits, the first of equals; confidence tanh(margin / 2) of the best two.
inline Pick noisy_pick(const float* logits, int vocab, float temperature, uint64_t seed, uint64_t position) {
    const double none = -std::numeric_limits<double>::infinity();
    double best = none, second = none;
    int64_t token = 0;
    for (int begin = 0; begin < vocab; begin += 32) {
        f64x8 g[4];
        gumbels(seed, position, uint64_t(begin) / 4, g);
        for (int j = 0; j < 32 && begin + j < vocab; j++) {
            const double score = double(logits[begin + j] / temperature) + g[j % 4][j / 4];
            if (score > second) {
                const bool leads = score > best;
                second = leads ? best : score;
                if (leads) best = score, token = begin + j;
            }
        }
    }
    return {token, std::tanh((best - second) / 2)};
}

inline float top_of(const float* logits, int vocab) {
    f32x16 best = splat(-std::numeric_limits<float>::infinity());
    int i = 0;
    for (; i + 16 <= vocab; i += 16) best = select<f32x16>(load16(logits + i) > best, load16(logits + i), best);
    float top = largest(best);
    for (; i < vocab; i++) top = logits[i] > top ? logits[i] : top;
    return top;
}

// The largest logit, the first of equals; confidence its probability when that is wanted.
inline Pick greedy_pick(const float* logits, int vocab, bool wants_confidence) {
    const float top = top_of(logits, vocab);
    int64_t token = 0;
    while (token < vocab - 1 && logits[token] != top) token++;
    if (!wants_confidence) return {token, 0};
    f32x16 total = {};
    int i = 0;
    for (; i + 16 <= vocab; i += 16) total += exp16(load16(logits + i) - top);
    float all = sum(total);
    for (; i < vocab; i++) all += exp16(splat(logits[i] - top))[0];
    return {token, 1.0 / double(all)};
}

struct Picking {
    float temperature;  // 0: greedy
    uint64_t seed;
    int64_t position;
};

inline Pick pick(const float* logits, int vocab, const Picking& how, bool wants_confidence) {
    return how.temperature > 0 ? noisy_pick(logits, vocab, how.temperature, how.seed, uint64_t(how.position))
                               : greedy_pick(logits, vocab, wants_confidence);
}

}  // namespace dp
