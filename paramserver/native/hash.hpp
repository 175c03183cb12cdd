// Seeded hashing of 64-bit ids, and the only random numbers of the table.
#pragma once

#include <cstdint>
#include <string_view>

namespace minutely {

__extension__ using uint128 = unsigned __int128;

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): one full-period, well mixed step.
inline uint64_t splitmix64(uint64_t& state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

inline uint64_t high_product(uint64_t a, uint64_t b) {
    return static_cast<uint64_t>((static_cast<uint128>(a) * b) >> 64);
}

// The seed of everything in a table: its own seed and its name, so that tables of one model never share values.
inline uint64_t table_seed(uint64_t seed, std::string_view name) {
    uint64_t state = seed;
    uint64_t mixed = splitmix64(state);
    for (const char c : name) {
        state = mixed ^ static_cast<unsigned char>(c);
        mixed = splitmix64(state);
    }
    return mixed;
}

// What an index hashes with: first values of rows depend on the table's seed alone, places on the secret too.
inline uint64_t hash_seed(uint64_t table_seed, uint64_t secret) {
    uint64_t state = secret;
    return table_seed ^ splitmix64(state);
}

// Two hashes of one id. An index is the high half of hash * buckets, so it is monotone in the hash: growing the index
// keeps the order of the buckets, which is what lets one sweep move them while both arrays are in use.
struct Hashes {
    uint64_t first;
    uint64_t second;
};

struct Hash {
    uint64_t mask = 0;
    uint64_t factor = 1;
    uint64_t second_factor = 1;

    explicit Hash(uint64_t seed) {
        uint64_t state = seed;
        mask = splitmix64(state);
        factor = splitmix64(state) | 1;
        second_factor = splitmix64(state) | 1;
    }

    uint64_t first(uint64_t id) const { return fold(id ^ mask, factor); }
    uint64_t second(uint64_t first_hash) const { return fold(first_hash, second_factor); }
    Hashes both(uint64_t id) const {
        const uint64_t one = first(id);
        return {one, second(one)};
    }

  private:
    static uint64_t fold(uint64_t a, uint64_t b) {
        const uint128 product = static_cast<uint128>(a) * b;
        return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }
};

}  // namespace minutely
