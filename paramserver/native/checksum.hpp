// What replicas' rows are checked against: the sum modulo 2^128 of a hash of every row, see docs/delta-format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hash.hpp"

namespace minutely {

// Of an id and its embedding, as replicas read it; never 0, which stands for no row.
uint128 row_hash(int64_t id, const float* values, size_t dim);
uint128 rows_sum(const int64_t* ids, const float* values, size_t count, size_t dim);

// The sum over rows that change. Keeps each row's last hash, in open addressing with linear probing, 24 bytes a place.
class Checksum {
  public:
    explicit Checksum(uint32_t dim) : dim_(dim), places_(16) {}

    uint32_t dim() const { return dim_; }
    uint64_t size() const { return size_; }
    uint128 value() const { return sum_; }
    void set(const int64_t* ids, const float* values, size_t count);
    void remove(const int64_t* ids, size_t count);

  private:
    struct Place {
        int64_t id = 0;
        uint64_t low = 0;
        uint64_t high = 0;
        bool used() const { return (low | high) != 0; }
        uint128 hash() const { return static_cast<uint128>(high) << 64 | low; }
    };
    size_t home(int64_t id) const;
    size_t find(int64_t id) const;
    void grow();

    uint32_t dim_;
    std::vector<Place> places_;  // a power of two
    uint64_t size_ = 0;
    uint128 sum_ = 0;
};

}  // namespace minutely
