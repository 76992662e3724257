// Sixteen floats at a time, in GCC's vector types, so that one source serves every instruction set. The order of
// every sum is written out: nothing here depends on how many rows are computed, or by how many threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace dp {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint64_t u64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8 __attribute__((vector_size(64)));

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

inline f32x16 splat(float value) { return value - f32x16{}; }

inline f32x16 load16(const float* from) { return load<f32x16>(from); }

// The first `left` of sixteen floats, and -infinity where there are none left.
inline f32x16 load_left(const float* from, int left) {
    if (left >= 16) return load16(from);
    f32x16 value = splat(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < left; i++) value[i] = from[i];
    return value;
}

inline float widen(float value) { return value; }

inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void store16(float* to, f32x16 value) { store(to, value); }

// To nearest, ties to even; a NaN stays one in all but its payload's last bits.
inline void store16(bf16* to, f32x16 value) {
    u32x16 bits = (u32x16)value;
    bits += 0x7fff + ((bits >> 16) & 1);
    store(to, __builtin_convertvector(bits >> 16, u16x16));
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

inline u32x8 half(u32x16 v, int which) {
    return which ? __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15) : __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
}

inline bool any(i32x16 mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
    u64x8 lanes = (u64x8)mask;
    lanes |= __builtin_shufflevector(lanes, lanes, 4, 5, 6, 7, 0, 1, 2, 3);
    return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
#endif
}

// Sums of sixteen vectors, one a lane, as a tree of the same shape every time.
inline f32x16 sums(const f32x16 (&p)[16]) {
    f32x16 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(p[2 * i], p[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               __builtin_shufflevector(p[2 * i], p[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(b[2 * i], b[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

inline float sum(f32x16 v) {
    float total = 0, half[8];
    for (int i = 0; i < 8; i++) half[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++) total += half[i] + half[i + 4];
    return total;
}

inline float largest(f32x16 v) {
    float best = v[0];
    for (int i = 1; i < 16; i++) best = v[i] > best ? v[i] : best;
    return best;
}

// e^x to about one unit in the last place; 0 below -87 and at -infinity, held at e^88 above.
inline f32x16 exp16(f32x16 x) {
    i32x16 tiny = x < splat(-87.0f);
    x = select<f32x16>(x > splat(88.0f), splat(88.0f), select<f32x16>(tiny, splat(-87.0f), x));
    const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    f32x16 n = (x * 1.44269504088896341f + magic) - magic;
    f32x16 r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    f32x16 p = splat(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
    p = p * r * r + r + 1.0f;
    i32x16 power = (__builtin_convertvector(n, i32x16) + 127) << 23;
    return select<f32x16>(tiny, f32x16{}, p * (f32x16)power);
}

inline f32x16 tanh16(f32x16 x) { return 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f); }

// Natural logarithm of positive normal doubles, to about one unit in the last place.
inline f64x8 log8(f64x8 x) {
    u64x8 bits = (u64x8)x;
    u64x8 shifted = bits - 0x3fe6a09e667f3bcdULL;  // sqrt(1/2): the fraction will lie in [sqrt(1/2), sqrt(2))
    i64x8 exponent = (i64x8)shifted >> 52;
    f64x8 fraction = (f64x8)(bits - ((u64x8)exponent << 52));
    f64x8 s = (fraction - 1.0) / (fraction + 1.0), s2 = s * s;
    f64x8 p = s2 / 23.0 + 1.0 / 21;
    for (double c : {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3}) p = p * s2 + c;
    f64x8 e = __builtin_convertvector(exponent, f64x8);
    return e * 0.693147180369123816490 + (2.0 * s + (2.0 * s * s2 * p + e * 1.90821492927058770002e-10));
}

}  // namespace dp
