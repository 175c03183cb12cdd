// From what `Tally::take` read of keys to the numbers of a feature: log odds of shares, and logs of counts and of
// seconds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace minutely {

// Shares closer to 0 and 1 count as this close, so that log odds are finite whatever comes in.
constexpr double kLeastShare = 1e-6;

// Of each half-life: log(1 + servings), and for each action the log odds of (actions + prior * share) / (servings +
// prior). `shares` has `kinds - 1` of each read, or the same for all.
inline void rates(const double* found, size_t reads, size_t half_lives, size_t kinds, const double* shares, bool same,
                  double prior, float* out) {
    for (size_t read = 0; read < reads; ++read, ++found, shares += same ? 0 : kinds - 1) {
        // The newest event's time comes first, which no rate needs.
        for (size_t h = 0; h < half_lives; ++h, found += kinds) {
            const double served = found[1];
            *out++ = static_cast<float>(std::log1p(served));
            for (size_t action = 0; action + 1 < kinds; ++action) {
                const double all = (found[2 + action] + prior * shares[action]) / (served + prior);
                const double share = std::clamp(all, kLeastShare, 1 - kLeastShare);
                *out++ = static_cast<float>(std::log(share / (1 - share)));
            }
        }
    }
}

// log(1 + seconds) since a time in ms; `missing_ms` where it is unknown.
inline float log_seconds(double time, int64_t at, double missing_ms) {
    const double elapsed = std::isnan(time) ? missing_ms : static_cast<double>(at) - time;
    return static_cast<float>(std::log1p(std::max(elapsed, 0.0) / 1000));
}

// Since the first serving, which is now where there was none, the last one, and the last time of each action.
inline void ages(const double* found, size_t reads, size_t times, const int64_t* at, double expire_ms, float* out) {
    for (size_t read = 0; read < reads; ++read, ++found)
        for (size_t i = 0; i < times; ++i, ++found) *out++ = log_seconds(found[1], at[read], i == 0 ? 0 : expire_ms);
}

// log(1 + servings), and since the last one.
inline void seen(const double* found, size_t reads, const int64_t* at, double within_ms, float* out) {
    for (size_t read = 0; read < reads; ++read, found += 2) {
        *out++ = static_cast<float>(std::log1p(found[1]));
        *out++ = log_seconds(found[0], at[read], within_ms);
    }
}

}  // namespace minutely
