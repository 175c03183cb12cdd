// What the stress writes and may read: rows that say whose they are and of which version.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "hash.hpp"

namespace minutely {

// A version stands for all that are congruent to it.
constexpr uint32_t kVersions = 16;

inline uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t state = a * 0x9e3779b97f4a7c15ull + b;
    return splitmix64(state);
}

// What a row holds: a function of id, version and element, exact in every format: a scale of 1 to 8 times levels of
// -127 to 127, 127 among them.
inline void write_row(int64_t id, uint32_t version, uint32_t dim, float* row) {
    const uint64_t hash = mix(static_cast<uint64_t>(id), version);
    const auto scale = static_cast<float>(1 + hash % 8);
    for (uint32_t j = 0; j < dim; ++j) row[j] = scale * static_cast<float>(static_cast<int>(mix(hash, j) % 253) - 126);
    row[(hash >> 32) % dim] = scale * 127.0f;
}

// Ids with one fate, their rows in every version, and which versions a reader may see.
struct Group {
    explicit Group(bool always) : steady(always) {}

    const bool steady;  // always there; otherwise they come and go, or never come
    std::vector<int64_t> ids;
    std::vector<float> rows;  // [version, id, dim]
    std::atomic<uint32_t> started{0}, committed{0};

    const float* row(size_t i, uint32_t version, uint32_t dim) const {
        return rows.data() + (version % kVersions * ids.size() + i) * dim;
    }
    void fill(uint32_t dim) {
        rows.resize(kVersions * ids.size() * dim);
        for (uint32_t version = 0; version < kVersions; ++version) {
            for (size_t i = 0; i < ids.size(); ++i)
                write_row(ids[i], version, dim, rows.data() + (version * ids.size() + i) * dim);
        }
    }
    bool holds(size_t i, uint32_t version, uint32_t dim, const float* row) const {
        return std::equal(row, row + dim, this->row(i, version, dim));
    }
};

struct Faults {
    std::atomic<uint64_t> reads{0}, torn{0}, foreign{0}, missed{0}, old{0};
    uint64_t steps = 0, idle = 0;
    uint64_t sum() const { return torn + foreign + missed + old + idle; }
};

}  // namespace minutely
