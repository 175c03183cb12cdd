// The few operations that are written per instruction set; all else is plain C++ that the compiler vectorizes.
//
// Included by one file per instruction set, with MINUTELY_ISA naming its namespace: the same inline function compiled
// with different flags must never be merged by the linker. For the same reason nothing here instantiates a standard
// container.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bucket.hpp"
#include "kernels.hpp"

namespace minutely::MINUTELY_ISA {

// Offset in bytes of the slot with this key, or of some slot where there is none. Only a hint, since the bucket is not
// read at one moment: the caller loads the slot whole and compares its key.
inline size_t match(const Bucket* bucket, uint64_t key) {
#if defined(__AVX512F__)
    const __m512i line = _mm512_load_si512(bucket);
    const unsigned equal = _mm512_mask_cmpeq_epi64_mask(0x55, line, _mm512_set1_epi64(static_cast<int64_t>(key)));
    return static_cast<size_t>(__builtin_ctz(equal | 0x100u) & 7) * 8;
#elif defined(__AVX2__)
    const auto* half = reinterpret_cast<const __m256i*>(bucket);
    const __m256i keys = _mm256_unpacklo_epi64(_mm256_load_si256(half), _mm256_load_si256(half + 1));
    const __m256i equal = _mm256_cmpeq_epi64(keys, _mm256_set1_epi64x(static_cast<int64_t>(key)));
    const unsigned bits = static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(equal)));
    // unpacklo leaves the keys of slots 0, 2, 1, 3.
    const unsigned at = static_cast<unsigned>(__builtin_ctz(bits | 0x10u));
    return ((at & 1u) << 5) | ((at & 2u) << 3);
#else
    const auto equal = [&](int i) MINUTELY_INLINE { return key_of(bucket->slots + i) == key; };
    size_t at = 0;
    for (int i = kSlotsPerBucket - 1; i > 0; --i) at = equal(i) ? static_cast<size_t>(i) : at;
    return (equal(0) ? 0 : at) * sizeof(Slot);
#endif
}

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    const uint32_t mantissa = half & 0x3ffu;
    float value;
    uint32_t bits;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 0x1p-24f;
        std::memcpy(&bits, &value, sizeof bits);
    } else {
        bits = ((exponent == 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
    }
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Round to nearest, ties to even, as the hardware does.
inline uint16_t float_to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
    if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (bits < 0x38800000u) {
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
    }
    const uint32_t odd = (bits >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
#endif
}

}  // namespace minutely::MINUTELY_ISA
