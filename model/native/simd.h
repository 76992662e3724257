// Vectors of one register of floats, in the compiler's vector types, so that one source serves every instruction set.
// The order of every sum and every fused operation is explicit (-ffp-contract=off), so results do not depend on the
// number of rows or threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dp {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t half_vu __attribute__((vector_size(2 * kLanes)));
typedef double vd __attribute__((vector_size(4 * kLanes)));
typedef int64_t vl __attribute__((vector_size(4 * kLanes)));
typedef uint64_t vul __attribute__((vector_size(4 * kLanes)));
typedef uint32_t quarter_vu __attribute__((vector_size(2 * kLanes)));  // as many elements as a register has doubles

// Prefetch distance in bytes of weights.
constexpr size_t kFetch = 4096;

struct bf16 {
    uint16_t bits;
};

template <class V>
inline V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V>
inline void store(void* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

inline vf splat(float value) { return value - vf{}; }

inline vf load_floats(const float* from) { return load<vf>(from); }

// Loads the first `left` floats; the remaining lanes are -infinity.
inline vf load_left(const float* from, int left) {
    if (left >= kLanes) return load_floats(from);
    vf value = splat(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < left; i++) value[i] = from[i];
    return value;
}

// a * b + c, rounded once if the machine has the instruction.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline float widen(float value) { return value; }

inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// The first and the second of each pair of bf16.
inline vf first_of(vu pairs) { return (vf)(pairs << 16); }
inline vf second_of(vu pairs) { return (vf)(pairs & 0xffff0000u); }

inline void store_floats(float* to, vf value) { store(to, value); }

// Rounds to nearest, ties to even. A NaN stays NaN, but loses the last bits of its payload.
inline void store_floats(bf16* to, vf value) {
    vu bits = (vu)value;
    bits += 0x7fff + ((bits >> 16) & 1);
    store(to, __builtin_convertvector(bits >> 16, half_vu));
}

inline void narrow(float* to, float value) { *to = value; }

inline void narrow(bf16* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class V>
inline V select(decltype(V{} < V{}) mask, V yes, V no) {
    return mask ? yes : no;
}

// Shuffles two vectors by constant indices; those of the second follow those of the first.
template <int... AT, class V>
inline V shuffle(V a, V b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, AT...);
#else
    return __builtin_shuffle(a, b, decltype(a < b){AT...});
#endif
}

// The lower (0) or the upper (1) half of a vector.
inline quarter_vu half(vu v, int which) {
    quarter_vu part;
    std::memcpy(&part, reinterpret_cast<const char*>(&v) + which * sizeof part, sizeof part);
    return part;
}

inline bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask);
#else
    int64_t lanes = 0;
    for (int i = 0; i < kLanes / 2; i++) lanes |= ((vl)mask)[i];
    return lanes;
#endif
}

// The sums of kLanes vectors, one per lane, always as a tree of the same shape.
#if defined(__AVX512F__)
inline vf sums(const vf (&p)[16]) {
    vf a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = shuffle<0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30>(p[2 * i], p[2 * i + 1]) +
               shuffle<1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31>(p[2 * i], p[2 * i + 1]);
    for (int i = 0; i < 4; i++)
        b[i] = shuffle<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(a[2 * i], a[2 * i + 1]) +
               shuffle<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 2; i++)
        c[i] = shuffle<0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27>(b[2 * i], b[2 * i + 1]) +
               shuffle<4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31>(b[2 * i], b[2 * i + 1]);
    return shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(c[0], c[1]) +
           shuffle<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(c[0], c[1]);
}
#else
inline vf sums(const vf (&p)[8]) {
    vf a[4], b[2];
    for (int i = 0; i < 4; i++)
        a[i] = shuffle<0, 8, 2, 10, 4, 12, 6, 14>(p[2 * i], p[2 * i + 1]) + shuffle<1, 9, 3, 11, 5, 13, 7, 15>(p[2 * i], p[2 * i + 1]);
    for (int i = 0; i < 2; i++)
        b[i] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(a[2 * i], a[2 * i + 1]) + shuffle<2, 3, 10, 11, 6, 7, 14, 15>(a[2 * i], a[2 * i + 1]);
    return shuffle<0, 1, 2, 3, 8, 9, 10, 11>(b[0], b[1]) + shuffle<4, 5, 6, 7, 12, 13, 14, 15>(b[0], b[1]);
}
#endif

// A vector whose lanes are those of v with the number of each xor STEP.
template <int STEP, int... AT>
inline vf swapped(vf v, std::integer_sequence<int, AT...>) {
    return shuffle<(AT ^ STEP)...>(v, v);
}

// All lanes combined, always as a tree of the same shape.
template <int STEP = kLanes / 2, class Combine>
inline float reduced(vf v, const Combine& combine) {
    v = combine(v, swapped<STEP>(v, std::make_integer_sequence<int, kLanes>()));
    if constexpr (STEP == 1) return v[0];
    else return reduced<STEP / 2>(v, combine);
}

inline float sum(vf v) {
    return reduced(v, [](vf a, vf b) { return a + b; });
}

inline float largest(vf v) {
    return reduced(v, [](vf a, vf b) { return select<vf>(b > a, b, a); });
}

// e^x to about one unit in the last place; 0 below -87 and at -infinity, clamped to e^88.
inline vf exponential(vf x) {
    vi tiny = x < splat(-87.0f);
    x = select<vf>(x > splat(88.0f), splat(88.0f), select<vf>(tiny, splat(-87.0f), x));
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf n = fma(x, splat(1.44269504088896341f), magic) - magic;
    vf r = fma(n, splat(-1.42860682030941723e-6f), fma(n, splat(-0.693145751953125f), x));
    vf p = splat(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fma(p, r, splat(c));
    p = fma(p * r, r, r) + 1.0f;
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return select<vf>(tiny, vf{}, p * (vf)power);
}

inline vf tangent(vf x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }  // hyperbolic

// Natural logarithm of positive normal doubles, to about one unit in the last place.
inline vd logarithm(vd x) {
    vul bits = (vul)x;
    vul shifted = bits - uint64_t(0x3fe6a09e667f3bcd);  // sqrt(1/2): the fraction will lie in [sqrt(1/2), sqrt(2))
    vl exponent = (vl)shifted >> 52;
    vd fraction = (vd)(bits - ((vul)exponent << 52));
    vd s = (fraction - 1.0) / (fraction + 1.0), s2 = s * s;
    vd p = s2 / 23.0 + 1.0 / 21;
    for (double c : {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3}) p = p * s2 + c;
    vd e = __builtin_convertvector(exponent, vd);
    return e * 0.693147180369123816490 + (2.0 * s + (2.0 * s * s2 * p + e * 1.90821492927058770002e-10));
}

}  // namespace dp
