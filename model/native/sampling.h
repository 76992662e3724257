// Coupled noise and picks: Philox4x32-10 keyed by (seed, position, token / 4), G = -log(-log U), the best score.
// The twin of model/noise.py and of the picks in model/sampling.py; the words are the same, bit for bit.
//
// Few of a row's tokens ever come near its best two, and which of them may is seen at sixteen a time: from the
// logits, and from a bound of G that needs no logarithm. Only where a token may do so are the scores computed.
#pragma once
#include "pool.h"
#include "simd.h"

namespace dp {

struct Pick {
    int64_t token;
    double confidence;
    int64_t runner_up;  // the best of the other tokens
};

// Of the lower halves.
inline u64x8 product(u64x8 word, uint32_t multiplier) {
#if defined(__AVX512F__)
    return (u64x8)_mm512_mul_epu32((__m512i)word, _mm512_set1_epi64(multiplier));
#else
    return (word & 0xffffffffULL) * uint64_t(multiplier);
#endif
}

// Words of tokens 4 * begin .. 4 * begin + 31, which are those of eight neighbouring blocks, sixteen to a vector.
inline void philox(uint64_t seed, uint64_t position, uint64_t begin, u32x16 (&words)[2]) {
    const u64x8 low = u64x8{} + 0xffffffffULL;
    uint64_t key0 = seed & 0xffffffffULL, key1 = seed >> 32;
    u64x8 c[4] = {u64x8{0, 1, 2, 3, 4, 5, 6, 7} + begin, u64x8{} + (position & 0xffffffffULL)};
    for (int round = 0; round < 10; round++) {  // the upper halves of c hold rubbish that no product reads
        u64x8 first = product(c[0], 0xD2511F53u), second = product(c[2], 0xCD9E8D57u);
        c[0] = (second >> 32) ^ c[1] ^ key0;
        c[1] = second;
        c[2] = (first >> 32) ^ c[3] ^ key1;
        c[3] = first;
        key0 = (key0 + 0x9E3779B9u) & 0xffffffffULL;
        key1 = (key1 + 0xBB67AE85u) & 0xffffffffULL;
    }
    const u64x8 even = (c[0] & low) | c[1] << 32, odd = (c[2] & low) | c[3] << 32;
    words[0] = (u32x16)__builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    words[1] = (u32x16)__builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
}

inline f64x8 gumbel(u32x8 words) {
    f64x8 u = (__builtin_convertvector(words, f64x8) + 0.5) * 0x1p-32;
    return -log8(-log8(u));
}

// No less than G, and near it where G is large: -log U >= 1 - U > v / 2^32 for v the word's complement, and the bits of
// a float, read as an integer, lie below its logarithm to base 2. The last thousandth covers all rounding.
inline f32x16 gumbel_bound(u32x16 words) {
    const i32x16 bits = (i32x16)__builtin_convertvector(~words, f32x16);
    return (32 + 127) * 0.693147180559945f + 0.001f - __builtin_convertvector(bits, f32x16) * (0.693147180559945f * 0x1p-23f);
}

// The best two scores so far, of equals the first; tokens are offered in ascending order.
struct TopTwo {
    static constexpr double none = -std::numeric_limits<double>::infinity();
    double best = none, second = none;
    int64_t token = 0, runner_up = 0;
    f32x16 bar = splat(-std::numeric_limits<float>::max());

    // Rounding keeps order, so a score above `second` is not below the bar when both are rounded to float.
    bool may_take(f32x16 bounds) const { return any(bounds >= bar); }

    void offer(int64_t id, double score) {
        if (!(score > second)) return;
        const bool leads = score > best;
        second = leads ? best : score;
        runner_up = leads ? token : id;
        if (leads) best = score, token = id;
        if (second > none) bar = splat(float(second));
    }

    // Where all the others are at -infinity the first of them is the runner-up.
    Pick pick(double confidence) const { return {token, confidence, second > none ? runner_up : token == 0}; }
};

// Largest noisy score of scaled logits; confidence tanh(margin / 2) of the best two.
inline Pick noisy_pick(const float* logits, int vocab, float temperature, uint64_t seed, uint64_t position) {
    TopTwo top;
    u32x16 words[2];
    for (int at = 0; at < vocab; at += 16) {
        if (at % 32 == 0) philox(seed, position, uint64_t(at) / 4, words);
        const u32x16 drawn = words[at / 16 % 2];
        const f32x16 scaled = load_left(logits + at, vocab - at) / temperature;
        if (!top.may_take(scaled + gumbel_bound(drawn))) continue;
        const f64x8 noise[2] = {gumbel(half(drawn, 0)), gumbel(half(drawn, 1))};
        for (int i = 0; i < 16; i++) top.offer(at + i, double(scaled[i]) + noise[i / 8][i % 8]);
    }
    return top.pick(std::tanh((top.best - top.second) / 2));
}

// The largest logit; confidence its probability when that is wanted.
inline Pick greedy_pick(const float* logits, int vocab, bool wants_confidence) {
    TopTwo top;
    for (int at = 0; at < vocab; at += 16) {
        const f32x16 own = load_left(logits + at, vocab - at);
        if (!top.may_take(own)) continue;
        for (int i = 0; i < 16; i++) top.offer(at + i, own[i]);
    }
    if (!wants_confidence) return top.pick(0);
    const f32x16 highest = splat(float(top.best));
    f32x16 total = {};
    int at = 0;
    for (; at + 16 <= vocab; at += 16) total += exp16(load16(logits + at) - highest);
    total += exp16(load_left(logits + at, vocab - at) - highest);
    return top.pick(1.0 / double(sum(total)));
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
