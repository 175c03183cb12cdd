// The first value of a row: a function of (seed, table, id) and nothing else, so replicas and reruns agree.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "hash.hpp"
#include "options.hpp"

namespace minutely {

// Eight at a time, in the compiler's vectors: left to itself it takes one after the other.
using EightFloats = float __attribute__((vector_size(32)));
using EightInts = int32_t __attribute__((vector_size(32)));

// Box and Muller (1958) in single precision, from 24 random bits for the radius and 24 for the angle: pairs of normal
// numbers up to 5.8 deviations. Additions, multiplications, square roots and moves of bits only, so every processor and
// library gives the same. Logarithm, sine and cosine by the polynomials of Moshier's Cephes library, on the reduced
// ranges that come directly from the bits.
inline void normal_pairs(EightInts radius_bits, EightInts turns, float* out) {
    // u in (0, 1], as a mantissa in [sqrt(1/2), sqrt(2)) and an exponent.
    constexpr int32_t kSqrtHalf = 0x3f3504f3;
    const EightFloats u = __builtin_convertvector(radius_bits + 1, EightFloats) * 0x1p-24f;
    const EightInts word = std::bit_cast<EightInts>(u) - kSqrtHalf;
    const EightFloats exponent = __builtin_convertvector(word >> 23, EightFloats);
    const EightFloats m = std::bit_cast<EightFloats>((word & 0x007fffff) + kSqrtHalf) - 1.0f;
    const EightFloats square = m * m;
    EightFloats log = m * 7.0376836292e-2f - 1.1514610310e-1f;
    log = log * m + 1.1676998740e-1f;
    log = log * m - 1.2420140846e-1f;
    log = log * m + 1.4249322787e-1f;
    log = log * m - 1.6668057665e-1f;
    log = log * m + 2.0000714765e-1f;
    log = log * m - 2.4999993993e-1f;
    log = log * m + 3.3333331174e-1f;
    log = log * m * square - square * 0.5f + m + exponent * 0.69314718f;
    float squares[8];
    const EightFloats twice = log * -2.0f;
    std::memcpy(squares, &twice, sizeof squares);
    for (float& one : squares) one = std::sqrt(one > 0.0f ? one : 0.0f);
    EightFloats radius;
    std::memcpy(&radius, squares, sizeof radius);

    // An angle in [-pi/4, pi/4) and quarter turns, which exchange sine and cosine and change their signs.
    const EightFloats x =
        __builtin_convertvector((turns & 0x3fffff) - 0x200000, EightFloats) * (0x1p-22f * 1.57079633f);
    const EightFloats xx = x * x;
    const EightFloats sine = ((xx * -1.9515295891e-4f + 8.3321608736e-3f) * xx - 1.6666654611e-1f) * xx * x + x;
    const EightFloats cosine =
        ((xx * 2.443315711809948e-5f - 1.388731625493765e-3f) * xx + 4.166664568298827e-2f) * xx * xx - xx * 0.5f +
        1.0f;
    const EightInts quarter = turns >> 22;
    const auto s = std::bit_cast<EightInts>(sine), c = std::bit_cast<EightInts>(cosine);
    const EightInts exchanged = (s ^ c) & -(quarter & 1);
    const EightInts first = c ^ exchanged ^ ((quarter ^ (quarter >> 1)) << 31);
    const EightInts second = s ^ exchanged ^ ((quarter >> 1) << 31);
    const EightFloats one = radius * std::bit_cast<EightFloats>(first);
    const EightFloats other = radius * std::bit_cast<EightFloats>(second);
    std::memcpy(out, &one, sizeof one);
    std::memcpy(out + 8, &other, sizeof other);
}

inline void initialize_row(const Initializer& with, uint64_t seed, uint64_t id, uint32_t dim, float* row) {
    if (with.kind == InitializerKind::kZeros || with.kind == InitializerKind::kConstant) {
        const float value = with.kind == InitializerKind::kZeros ? 0.0f : with.a;
        for (uint32_t j = 0; j < dim; ++j) row[j] = value;
        return;
    }
    uint64_t state = seed ^ id;
    state = splitmix64(state);
    if (with.kind == InitializerKind::kUniform) {
        // 53 random bits in [0, 1), as in most libraries.
        const double low = with.a, width = static_cast<double>(with.b) - static_cast<double>(with.a);
        for (uint32_t j = 0; j < dim; ++j)
            row[j] = static_cast<float>(low + width * (static_cast<double>(splitmix64(state) >> 11) * 0x1p-53));
        return;
    }
    for (uint32_t from = 0; from < dim; from += 16) {
        EightInts radius_bits, turns;
        for (int k = 0; k < 8; ++k) {
            const uint64_t bits = splitmix64(state);
            radius_bits[k] = static_cast<int32_t>(bits >> 40);
            turns[k] = static_cast<int32_t>(bits & 0xffffff);
        }
        float values[16];
        normal_pairs(radius_bits, turns, values);
        const uint32_t count = std::min(dim - from, 16u);
        for (uint32_t j = 0; j < count; ++j) row[from + j] = with.a + with.b * values[j];
    }
}

}  // namespace minutely
