// The instruction of AVX-VNNI in plain C++, for processors that lack it: included before the kernels, it takes the place
// of the compiler's own.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

// Adds the products of four unsigned and four signed bytes to each sum.
inline __m256i add_products(__m256i sums, __m256i a, __m256i b) {
    int32_t total[8];
    uint8_t x[32];
    int8_t y[32];
    std::memcpy(total, &sums, 32), std::memcpy(x, &a, 32), std::memcpy(y, &b, 32);
    for (int i = 0; i < 32; i++) total[i / 4] += int(x[i]) * int(y[i]);
    std::memcpy(&sums, total, 32);
    return sums;
}

}  // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::add_products
