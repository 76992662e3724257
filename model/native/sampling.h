// Coupled noise and picks: Philox4x32-10 keyed by (seed, position, token / 4), G = -log(-log U), argmax of the scores.
// Equivalent to model/noise.py and the picks of model/sampling.py; the random words are equal, bit for bit.
//
// Few tokens of a row can be among its best two. A register at a time, tokens are excluded by their logits and by a
// bound of G that needs no logarithm. Exact scores are computed only for the others.
#pragma once
#include "pool.h"
#include "simd.h"

namespace dp {

struct Pick {
    int64_t token;
    double confidence;
    int64_t runner_up;  // the best of the other tokens
};

// Products of the lower halves.
inline vul product(vul word, uint32_t multiplier) {
#if defined(__AVX512F__)
    return (vul)_mm512_mul_epu32((__m512i)word, _mm512_set1_epi64(multiplier));
#elif defined(__AVX2__)
    return (vul)_mm256_mul_epu32((__m256i)word, _mm256_set1_epi64x(multiplier));
#else
    return (word & uint64_t(0xffffffff)) * uint64_t(multiplier);
#endif
}

// c[0]: the numbers of blocks, one per lane. Returns their four words in the lower halves of c.
inline void philox(uint64_t seed, uint64_t position, vul (&c)[4]) {
    uint64_t key0 = seed & uint64_t(0xffffffff), key1 = seed >> 32;
    c[1] = vul{} + (position & uint64_t(0xffffffff));
    c[2] = c[3] = vul{};
    for (int round = 0; round < 10; round++) {  // the upper halves of c hold garbage that no product reads
        vul first = product(c[0], 0xD2511F53u), second = product(c[2], 0xCD9E8D57u);
        c[0] = (second >> 32) ^ c[1] ^ key0;
        c[1] = second;
        c[2] = (first >> 32) ^ c[3] ^ key1;
        c[3] = first;
        key0 = (key0 + 0x9E3779B9u) & uint64_t(0xffffffff);
        key1 = (key1 + 0xBB67AE85u) & uint64_t(0xffffffff);
    }
}

// Words of tokens 4 * begin .. 4 * begin + kWords - 1: neighbouring blocks.
constexpr int kWords = 2 * kLanes;

inline void neighbours(uint64_t seed, uint64_t position, uint64_t begin, vu (&words)[2]) {
    const vul low = vul{} + uint64_t(0xffffffff);
    vul c[4] = {vul{} + begin};
    for (int lane = 0; lane < kLanes / 2; lane++) c[0][lane] += uint64_t(lane);
    philox(seed, position, c);
    const vul even = (c[0] & low) | c[1] << 32, odd = (c[2] & low) | c[3] << 32;
#if defined(__AVX512F__)
    words[0] = (vu)shuffle<0, 8, 1, 9, 2, 10, 3, 11>(even, odd);
    words[1] = (vu)shuffle<4, 12, 5, 13, 6, 14, 7, 15>(even, odd);
#else
    words[0] = (vu)shuffle<0, 4, 1, 5>(even, odd);
    words[1] = (vu)shuffle<2, 6, 3, 7>(even, odd);
#endif
}

// Words of `count` tokens, at most kLanes of them.
inline vu chosen(uint64_t seed, uint64_t position, const int64_t* ids, int count) {
    constexpr int blocks = kLanes / 2;
    vu words = {};
    for (int first = 0; first < count; first += blocks) {
        vul c[4] = {};
        for (int lane = 0; lane < blocks && first + lane < count; lane++) c[0][lane] = uint64_t(ids[first + lane]) / 4;
        philox(seed, position, c);
        for (int lane = 0; lane < blocks && first + lane < count; lane++) words[first + lane] = uint32_t(c[ids[first + lane] % 4][lane]);
    }
    return words;
}

inline vd gumbel(quarter_vu words) {
    vd u = (__builtin_convertvector(words, vd) + 0.5) * 0x1p-32;
    return -logarithm(-logarithm(u));
}

// An upper bound of G that is close for large G: -log U >= 1 - U > v / 2^32, where v is the word's complement, and the
// bits of a float, read as an integer, lie below its logarithm to base 2. The last thousandth covers all rounding.
inline vf gumbel_bound(vu words) {
    const vi bits = (vi)__builtin_convertvector(~words, vf);
    return (32 + 127) * 0.693147180559945f + 0.001f - __builtin_convertvector(bits, vf) * (0.693147180559945f * 0x1p-23f);
}

// The best two scores so far, the first of equals. Tokens must be offered in ascending order.
struct TopTwo {
    static constexpr double none = -std::numeric_limits<double>::infinity();
    double best = none, second = none;
    int64_t token = 0, runner_up = 0;
    bool undefined = false;  // a score was NaN
    vf bar = splat(-std::numeric_limits<float>::max());

    // Rounding keeps the order, so a score above `second` is not below the threshold when both are rounded to float. A
    // NaN bound is not below it either.
    bool may_take(vf bounds) const { return any(~(bounds < bar)); }

    void offer(int64_t id, double score) {
        if (!(score > second)) {
            undefined |= score != score;
            return;
        }
        const bool leads = score > best;
        second = leads ? best : score;
        runner_up = leads ? token : id;
        if (leads) best = score, token = id;
        if (second > none) bar = splat(float(second));
    }

    // If all other scores are -infinity, the first of them is the runner-up. If a score is NaN or the best is infinite,
    // there is no pick: returns token 0 with confidence 0 and runner-up -1.
    Pick pick(double confidence) const {
        if (undefined || !std::isfinite(best)) return {0, 0.0, -1};
        return {token, confidence, second > none ? runner_up : token == 0};
    }
};

// The tokens of the columns of logits: ids, which ascend; null: column c is token c.
struct Columns {
    int count = 0;
    const int64_t* ids = nullptr;

    Pick named(Pick pick) const {
        if (!ids) return pick;
        return {ids[pick.token], pick.confidence, pick.runner_up < 0 ? pick.runner_up : ids[pick.runner_up]};
    }
};

// Picks the largest noisy score of scaled logits; confidence is tanh(margin / 2) of the best two. Returns columns.
inline Pick noisy_pick(const float* logits, const Columns& columns, float temperature, uint64_t seed, uint64_t position) {
    TopTwo top;
    vu words[2];
    for (int at = 0; at < columns.count; at += kLanes) {
        const int left = columns.count - at;
        if (!columns.ids && at % kWords == 0) neighbours(seed, position, uint64_t(at) / 4, words);
        const vu drawn = columns.ids ? chosen(seed, position, columns.ids + at, std::min(left, kLanes)) : words[at / kLanes % 2];
        const vf scaled = load_left(logits + at, left) / temperature;
        if (!top.may_take(scaled + gumbel_bound(drawn))) continue;
        const vd noise[2] = {gumbel(half(drawn, 0)), gumbel(half(drawn, 1))};
        for (int i = 0; i < kLanes; i++) top.offer(at + i, double(scaled[i]) + noise[i / (kLanes / 2)][i % (kLanes / 2)]);
        if (top.undefined) break;
    }
    return top.pick(std::tanh((top.best - top.second) / 2));
}

// Picks the largest logit; confidence is its probability, if requested. Returns columns.
inline Pick greedy_pick(const float* logits, int count, bool wants_confidence) {
    TopTwo top;
    for (int at = 0; at < count; at += kLanes) {
        const vf own = load_left(logits + at, count - at);
        if (!top.may_take(own)) continue;
        for (int i = 0; i < kLanes; i++) top.offer(at + i, own[i]);
        if (top.undefined) break;
    }
    if (!wants_confidence) return top.pick(0);
    const vf highest = splat(float(top.best));
    vf total = {};
    int at = 0;
    for (; at + kLanes <= count; at += kLanes) total += exponential(load_floats(logits + at) - highest);
    total += exponential(load_left(logits + at, count - at) - highest);
    return top.pick(1.0 / double(sum(total)));
}

struct Picking {
    float temperature;  // 0: greedy
    uint64_t seed;
    int64_t position;
};

inline Pick pick(const float* logits, const Columns& columns, const Picking& how, bool wants_confidence) {
    return columns.named(how.temperature > 0 ? noisy_pick(logits, columns, how.temperature, how.seed, uint64_t(how.position))
                                             : greedy_pick(logits, columns.count, wants_confidence));
}

}  // namespace dp
