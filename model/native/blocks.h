// Weights of few bits in blocks of 32 inputs. A panel holds the weights of one register of outputs, block by block, as
// the products read them: group by group of four inputs, one output a lane. Scales stand in front of each block.
#pragma once
#include <type_traits>

#include "simd.h"

namespace dp {

// The names are GGUF's, except int8: one scale an output. Values as in model/native/weights.py.
enum class Format : int { dense, int8, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

constexpr int kBlockInputs = 32, kGroups = kBlockInputs / 4;
constexpr size_t kRegister = 4 * kLanes;  // bytes

// AVX-512 VNNI multiplies unsigned by signed bytes without overflow; weights of eight bits are then stored plus 128.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kUnsigned = true;
#else
constexpr bool kUnsigned = false;
#endif

// Bytes of one output: BITS for each weight, and SCALES in front of every block, SUPER_SCALES in front of SUPER blocks,
// HEAD in front of all.
template <int BITS, int SCALES, int SUPER = 1, int SUPER_SCALES = 0, int HEAD = 0>
struct Layout {
    static constexpr int bits = BITS, super = SUPER, parts = BITS == 6 ? 2 : 1;  // parts: scales a block
    static constexpr size_t scale_bytes = SCALES * kLanes, block_bytes = scale_bytes + BITS * kRegister;
    static constexpr size_t super_scales = SUPER_SCALES * kLanes, super_bytes = super_scales + SUPER * block_bytes;
    static constexpr size_t head_bytes = HEAD * kLanes;

    static size_t panel_bytes(int inputs) { return head_bytes + (inputs + kBlockInputs - 1) / kBlockInputs / SUPER * super_bytes; }

    template <class P>
    static P* super_at(P* panel, int block) { return panel + head_bytes + block / SUPER * super_bytes; }

    template <class P>
    static P* block_at(P* panel, int block) { return super_at(panel, block) + super_scales + block % SUPER * block_bytes; }
};

// A weight is scale * quant + offset, by output and part of a block.
struct Scales {
    vf scale[2], offset[2];
};

inline float half_to_float(uint16_t bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                      : std::ldexp(float(fraction), -24);
    return bits >> 15 ? -size : size;
#endif
}

// One half a lane.
inline vf load_halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    vf value;
    for (int i = 0; i < kLanes; i++) value[i] = half_to_float(load<uint16_t>(from + 2 * i));
    return value;
#endif
}

// One byte a lane, signed or not.
template <class B>
inline vf load_bytes(const uint8_t* from) {
    constexpr bool is_signed = B(-1) < 0;
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return __builtin_convertvector((vi)(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes)), vf);
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return __builtin_convertvector((vi)(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)), vf);
#else
    vf value;
    for (int i = 0; i < kLanes; i++) value[i] = is_signed ? int8_t(from[i]) : from[i];
    return value;
#endif
}

template <Format>
struct Codec;

template <>
struct Codec<Format::int8> : Layout<8, 0, 1, 0, 4> {
    static void read(const uint8_t* panel, int, Scales& s) { s.scale[0] = load<vf>(panel), s.offset[0] = vf{}; }
};

// Formats whose quants are centred at ZERO.
template <int BITS, int ZERO>
struct Centred : Layout<BITS, 2> {
    static void read(const uint8_t* panel, int block, Scales& s) {
        s.scale[0] = load_halves(Centred::block_at(panel, block));
        s.offset[0] = s.scale[0] * float(-ZERO);
    }
};
template <>
struct Codec<Format::q8_0> : Centred<8, 0> {};
template <>
struct Codec<Format::q4_0> : Centred<4, 8> {};
template <>
struct Codec<Format::q5_0> : Centred<5, 16> {};

template <int BITS>
struct Shifted : Layout<BITS, 4> {
    static void read(const uint8_t* panel, int block, Scales& s) {
        const uint8_t* at = Shifted::block_at(panel, block);
        s.scale[0] = load_halves(at), s.offset[0] = load_halves(at + 2 * kLanes);
    }
};
template <>
struct Codec<Format::q4_1> : Shifted<4> {};
template <>
struct Codec<Format::q5_1> : Shifted<5> {};

// Eight blocks share two halves; each has a byte for its scale and one for its minimum.
template <int BITS>
struct Nested : Layout<BITS, 2, 8, 4> {
    static void read(const uint8_t* panel, int block, Scales& s) {
        const uint8_t *super = Nested::super_at(panel, block), *at = Nested::block_at(panel, block);
        s.scale[0] = load_halves(super) * load_bytes<uint8_t>(at);
        s.offset[0] = -load_halves(super + 2 * kLanes) * load_bytes<uint8_t>(at + kLanes);
    }
};
template <>
struct Codec<Format::q4_k> : Nested<4> {};
template <>
struct Codec<Format::q5_k> : Nested<5> {};

template <>
struct Codec<Format::q6_k> : Layout<6, 2, 8, 2> {
    static void read(const uint8_t* panel, int block, Scales& s) {
        const uint8_t* at = block_at(panel, block);
        const vf whole = load_halves(super_at(panel, block));
        for (int part = 0; part < 2; part++) {
            s.scale[part] = whole * load_bytes<int8_t>(at + part * kLanes);
            s.offset[part] = s.scale[part] * -32.0f;
        }
    }
};

// Whether products need the sums of the inputs.
template <class C>
constexpr bool kHasOffset = C::bits < 8 || kUnsigned;

// Calls work with a format that is not dense, as a type.
template <class Work>
inline auto with_format(Format format, const Work& work) {
    switch (format) {
        case Format::q8_0: return work(std::integral_constant<Format, Format::q8_0>());
        case Format::q4_0: return work(std::integral_constant<Format, Format::q4_0>());
        case Format::q4_1: return work(std::integral_constant<Format, Format::q4_1>());
        case Format::q5_0: return work(std::integral_constant<Format, Format::q5_0>());
        case Format::q5_1: return work(std::integral_constant<Format, Format::q5_1>());
        case Format::q4_k: return work(std::integral_constant<Format, Format::q4_k>());
        case Format::q5_k: return work(std::integral_constant<Format, Format::q5_k>());
        case Format::q6_k: return work(std::integral_constant<Format, Format::q6_k>());
        default: return work(std::integral_constant<Format, Format::int8>());
    }
}

// The quants of a block, a register a group. Registers of nibbles hold groups i and i + 4. A fifth bit of group g is
// bit g of each byte of one more register; a fifth and sixth are bits 2 g and 2 g + 1 of the bytes of two registers.
template <int BITS>
inline void unpack(const uint8_t* from, vu (&quants)[kGroups]) {
    if constexpr (BITS == 8) {
        for (int g = 0; g < kGroups; g++) quants[g] = load<vu>(from + g * kRegister);
        return;
    }
    for (int i = 0; i < 4; i++) {
        const vu pair = load<vu>(from + i * kRegister);
        quants[i] = pair & 0x0f0f0f0fu, quants[i + 4] = pair >> 4 & 0x0f0f0f0fu;
    }
    if constexpr (BITS == 5) {
        const vu high = load<vu>(from + 4 * kRegister);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; g++) quants[g] |= (g < 4 ? high << (4 - g) : high >> (g - 4)) & 0x10101010u;
    }
    if constexpr (BITS == 6) {
        const vu high[2] = {load<vu>(from + 4 * kRegister), load<vu>(from + 5 * kRegister)};
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; g++) {
            const int shift = 2 * (g % 4);
            quants[g] |= (shift < 4 ? high[g / 4] << (4 - shift) : high[g / 4] >> (shift - 4)) & 0x30303030u;
        }
    }
}

template <int BITS>
inline void pack(const vu (&quants)[kGroups], uint8_t* to) {
    if constexpr (BITS == 8) {
        for (int g = 0; g < kGroups; g++) store(to + g * kRegister, quants[g]);
        return;
    }
    for (int i = 0; i < 4; i++)
        store(to + i * kRegister, (quants[i] & 0x0f0f0f0fu) | (quants[i + 4] << 4 & 0xf0f0f0f0u));
    vu high[2] = {};
    for (int g = 0; g < kGroups; g++) {
        if (BITS == 5) high[0] |= (quants[g] >> 4 & 0x01010101u) << g;
        if (BITS == 6) high[g / 4] |= (quants[g] >> 4 & 0x03030303u) << 2 * (g % 4);
    }
    for (int i = 0; i < BITS - 4; i++) store(to + (4 + i) * kRegister, high[i]);
}

// The scales of a block, for its quants as they are kept.
template <class C>
inline void read_scales(const uint8_t* panel, int block, Scales& scales) {
    C::read(panel, block, scales);
    if (C::bits == 8 && kUnsigned) scales.offset[0] = scales.scale[0] * -128.0f;
}

// Reads a block.
template <class C>
inline void read_block(const uint8_t* panel, int block, vu (&quants)[kGroups], Scales& scales) {
    read_scales<C>(panel, block, scales);
    unpack<C::bits>(C::block_at(panel, block) + C::scale_bytes, quants);
}

// The weights of one output, in floats. out: [inputs].
template <class C>
inline void read_row(const uint8_t* panel, int lane, int inputs, float* out) {
    vu quants[kGroups];
    Scales scales;
    for (int k = 0; k < inputs; k++) {
        const int at = k % kBlockInputs, part = at * C::parts / kBlockInputs;
        if (at == 0) read_block<C>(panel, k / kBlockInputs, quants, scales);
        const uint8_t bits = uint8_t(quants[at / 4][lane] >> 8 * (at % 4));
        const float quant = C::bits == 8 && !kUnsigned ? float(int8_t(bits)) : float(bits);
        out[k] = scales.scale[part][lane] * quant + scales.offset[part][lane];
    }
}

// A strip: the panels of sixteen outputs, one after the other.
struct Strip {
    const uint8_t* panels;
    int64_t format;
};

// The weights of one of its outputs.
inline void read_strip(const Strip& strip, int lane, int inputs, float* out) {
    with_format(Format(strip.format), [&](auto f) {
        using C = Codec<f()>;
        read_row<C>(strip.panels + lane / kLanes * C::panel_bytes(inputs), lane % kLanes, inputs, out);
    });
}

}  // namespace dp
