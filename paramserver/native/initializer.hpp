// The first value of a row: a function of (seed, table, id) and nothing else, so replicas and reruns agree.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "hash.hpp"
#include "options.hpp"

namespace minutely {

inline void initialize_row(const Initializer& with, uint64_t seed, uint64_t id, uint32_t dim, float* row) {
    if (with.kind == InitializerKind::kZeros || with.kind == InitializerKind::kConstant) {
        const float value = with.kind == InitializerKind::kZeros ? 0.0f : with.a;
        for (uint32_t j = 0; j < dim; ++j) row[j] = value;
        return;
    }
    uint64_t state = seed ^ id;
    state = splitmix64(state);
    // 53 random bits in [0, 1), as in most libraries.
    const auto unit = [&state] { return static_cast<double>(splitmix64(state) >> 11) * 0x1p-53; };
    if (with.kind == InitializerKind::kUniform) {
        const double low = with.a, width = static_cast<double>(with.b) - static_cast<double>(with.a);
        for (uint32_t j = 0; j < dim; ++j) row[j] = static_cast<float>(low + width * unit());
        return;
    }
    // Box and Muller (1958), in double precision: rounding to float hides the last bit in which libraries differ.
    for (uint32_t j = 0; j < dim; j += 2) {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - unit()));
        const double angle = 2.0 * std::numbers::pi * unit();
        row[j] = static_cast<float>(with.a + with.b * radius * std::cos(angle));
        if (j + 1 < dim) row[j + 1] = static_cast<float>(with.a + with.b * radius * std::sin(angle));
    }
}

}  // namespace minutely
