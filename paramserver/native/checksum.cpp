#include "checksum.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace minutely {

namespace {

constexpr size_t kAhead = 16;
constexpr uint64_t kLow = 0x9e3779b97f4a7c15ull;
constexpr uint64_t kHigh = 0xd1b54a32d192ed03ull;

// The finalizer of splitmix64.
uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

}  // namespace

uint128 row_hash(int64_t id, const float* values, size_t dim) {
    uint64_t low = mix(static_cast<uint64_t>(id) + kLow);
    uint64_t high = mix(static_cast<uint64_t>(id) + kHigh);
    for (size_t i = 0; i < dim; i += 2) {
        uint64_t word = 0;
        std::memcpy(&word, values + i, std::min<size_t>(dim - i, 2) * sizeof(float));
        low = mix(low ^ word) + kLow;
        high = mix(high ^ word) + kHigh;
    }
    const uint128 hash = static_cast<uint128>(high) << 64 | low;
    return hash == 0 ? 1 : hash;
}

uint128 rows_sum(const int64_t* ids, const float* values, size_t count, size_t dim) {
    uint128 sum = 0;
    for (size_t i = 0; i < count; ++i) sum += row_hash(ids[i], values + i * dim, dim);
    return sum;
}

size_t Checksum::home(int64_t id) const { return mix(static_cast<uint64_t>(id) + kLow) & (places_.size() - 1); }

// Where the id is, or the free place where it belongs.
size_t Checksum::find(int64_t id) const {
    size_t at = home(id);
    while (places_[at].used() && places_[at].id != id) at = (at + 1) & (places_.size() - 1);
    return at;
}

void Checksum::set(const int64_t* ids, const float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        if (4 * (size_ + 1) > 3 * places_.size()) grow();
        if (i + kAhead < count) __builtin_prefetch(&places_[home(ids[i + kAhead])], 1);
        const uint128 hash = row_hash(ids[i], values + i * dim_, dim_);
        Place& place = places_[find(ids[i])];
        size_ += !place.used();
        sum_ += hash - place.hash();
        place = {ids[i], static_cast<uint64_t>(hash), static_cast<uint64_t>(hash >> 64)};
    }
}

void Checksum::remove(const int64_t* ids, size_t count) {
    const size_t mask = places_.size() - 1;
    for (size_t i = 0; i < count; ++i) {
        if (i + kAhead < count) __builtin_prefetch(&places_[home(ids[i + kAhead])], 1);
        size_t hole = find(ids[i]);
        if (!places_[hole].used()) continue;
        sum_ -= places_[hole].hash();
        --size_;
        // What follows moves up, unless it would come before its own home.
        for (size_t at = (hole + 1) & mask; places_[at].used(); at = (at + 1) & mask) {
            if (((at - home(places_[at].id)) & mask) < ((at - hole) & mask)) continue;
            places_[hole] = places_[at];
            hole = at;
        }
        places_[hole] = {};
    }
}

void Checksum::grow() {
    std::vector<Place> before = std::exchange(places_, std::vector<Place>(2 * places_.size()));
    for (const Place& place : before) {
        if (place.used()) places_[find(place.id)] = place;
    }
}

}  // namespace minutely
