// The rows' memory: one array that never moves, addressed by row number, with the numbers of freed rows kept for reuse.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "options.hpp"
#include "readers.hpp"

namespace minutely {

class Slab {
  public:
    Slab(const Options& options) {
        const uint32_t dim = options.dim;
        size_t bytes = 0;
        switch (options.format) {
        case RowFormat::kTrain:
            bytes = (dim + options.optimizer.row_state(dim)) * sizeof(float);
            break;
        case RowFormat::kFloat32:
            bytes = dim * sizeof(float);
            break;
        case RowFormat::kFloat16:
            bytes = dim * sizeof(uint16_t);
            break;
        case RowFormat::kInt8:
            bytes = dim;
            break;
        }
        // A row starts on a cache line or lies within one.
        const size_t stride = bytes >= 64 ? (bytes + 63) / 64 * 64 : std::bit_ceil(bytes);
        limit_ = std::min<uint64_t>(kMostRows, kMostBytes / stride);
        rows_ = VirtualArray(limit_ * stride);
        area_ = {rows_.data(), stride, dim, options.format, nullptr};
        if (options.format == RowFormat::kTrain) {
            sights_ = VirtualArray(limit_ * sizeof(Sight));
            area_.sights = reinterpret_cast<Sight*>(sights_.data());
        }
    }

    const RowArea& area() const { return area_; }

    uint32_t allocate() {
        if (!free_.empty()) {
            const uint32_t row = free_.back();
            free_.pop_back();
            return row;
        }
        if (next_ >= limit_) throw std::length_error("a table holds at most " + std::to_string(limit_ - 1) + " rows");
        rows_.commit((next_ + 1) * area_.stride_bytes);
        if (area_.sights != nullptr) sights_.commit((next_ + 1) * sizeof(Sight));
        return static_cast<uint32_t>(next_++);
    }

    // For a row that no reader can see.
    void free(uint32_t row) { free_.push_back(row); }

    // For a row that readers may still be reading: reused once they are gone.
    void retire(uint32_t row) { retiring_.push_back(row); }

    void reclaim(Readers& readers) {
        if (!retiring_.empty()) {
            waiting_count_ += retiring_.size();
            waiting_.push_back({readers.next_epoch(), std::move(retiring_)});
            retiring_.clear();
        }
        while (!waiting_.empty()) {
            if (waiting_.front().epoch >= readers.oldest()) {
                if (waiting_count_ < kMostWaiting) return;
                std::this_thread::yield();  // bounded: a reader stays for one batch
                continue;
            }
            free_.insert(free_.end(), waiting_.front().rows.begin(), waiting_.front().rows.end());
            waiting_count_ -= waiting_.front().rows.size();
            waiting_.pop_front();
        }
    }

    // Bytes of address space made usable; what was never touched takes no memory.
    size_t bytes() const { return next_ * (area_.stride_bytes + (area_.sights != nullptr ? sizeof(Sight) : 0)); }

  private:
    struct Waiting {
        uint64_t epoch;
        std::vector<uint32_t> rows;
    };
    static constexpr uint64_t kMostRows = uint64_t{1} << 31;
    static constexpr uint64_t kMostBytes = uint64_t{1} << 40;
    static constexpr size_t kMostWaiting = size_t{1} << 16;

    VirtualArray rows_;
    VirtualArray sights_;
    RowArea area_{};
    uint64_t limit_ = 0;
    uint64_t next_ = 1;  // row 0 means no row
    std::vector<uint32_t> free_;
    std::vector<uint32_t> retiring_;
    std::deque<Waiting> waiting_;
    size_t waiting_count_ = 0;
};

}  // namespace minutely
