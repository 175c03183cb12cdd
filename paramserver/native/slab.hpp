// The rows' memory: one array that never moves, addressed by row number. Freed numbers are used again, the lowest
// first, and a block of rows that are all free gives its memory back.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "free_rows.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "options.hpp"
#include "readers.hpp"

namespace minutely {

class Slab {
  public:
    // In so much memory as a table may take, which bounds the address space that is reserved.
    Slab(const Options& options, size_t memory_bytes) {
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
        // A row takes a slot of the index as well. Row 0 is none.
        limit_ = std::min<uint64_t>(kMostRows, memory_bytes / (stride + sizeof(Slot)) + 1);
        while ((stride << block_shift_) < kHugePageBytes) ++block_shift_;
        rows_ = VirtualArray(limit_ * stride);
        area_ = {rows_.data(), stride, dim, options.format, nullptr};
        if (options.format == RowFormat::kTrain) {
            sights_ = VirtualArray(limit_ * sizeof(Sight));
            area_.sights = reinterpret_cast<Sight*>(sights_.data());
        }
    }

    const RowArea& area() const { return area_; }

    // Rows that it takes at most.
    uint64_t limit() const { return limit_ - 1; }

    uint32_t allocate() {
        uint32_t row;
        if (!free_.empty()) {
            row = free_.take_lowest();
        } else {
            if (next_ >= limit_) {
                throw std::length_error("a table of this width holds at most " + std::to_string(limit()) +
                                        " rows on this machine");
            }
            rows_.commit((next_ + 1) * area_.stride_bytes);
            if (area_.sights != nullptr) sights_.commit((next_ + 1) * sizeof(Sight));
            row = static_cast<uint32_t>(next_++);
            if (row >> block_shift_ >= used_.size()) used_.push_back(0);
        }
        const size_t block = row >> block_shift_;
        if (used_[block]++ == 0) {
            ++used_blocks_;
            if (spare_ == block) spare_ = kNoBlock;
        }
        ++live_;
        return row;
    }

    // For a row that no reader can see.
    void free(uint32_t row) {
        free_.add(row);
        --live_;
        const size_t block = row >> block_shift_;
        if (--used_[block] > 0) return;
        --used_blocks_;
        // One empty block stays, so that a table whose size goes up and down a little does not fault it in each time.
        if (spare_ == kNoBlock) {
            spare_ = block;
        } else {
            give_back(std::max(block, spare_));
            spare_ = std::min(block, spare_);
        }
    }

    // Whether live rows are spread over clearly more blocks than they would fill.
    bool sparse() const { return (used_blocks_ << block_shift_) > allowance(); }
    // Whether a live row lies so far behind that it should move to a lower number.
    bool far(uint32_t row) const { return row > allowance() && !free_.empty() && free_.lowest() < row; }

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
            for (const uint32_t row : waiting_.front().rows) free(row);
            waiting_count_ -= waiting_.front().rows.size();
            waiting_.pop_front();
        }
    }

    // Bytes of the blocks in use; what was never touched of them takes no memory.
    size_t bytes() const {
        const uint64_t rows = std::min<uint64_t>(used_blocks_ << block_shift_, next_);
        return rows * (area_.stride_bytes + (area_.sights != nullptr ? sizeof(Sight) : 0));
    }

  private:
    struct Waiting {
        uint64_t epoch;
        std::vector<uint32_t> rows;
    };
    static constexpr uint64_t kMostRows = uint64_t{1} << 31;  // row numbers are below kChanged
    static_assert(kMostRows <= kChanged);
    static constexpr size_t kNoBlock = SIZE_MAX;
    static constexpr size_t kMostWaiting = size_t{1} << 16;

    uint64_t allowance() const { return live_ + live_ / 4 + (uint64_t{2} << block_shift_); }
    void give_back(size_t block) {
        const size_t from = block << block_shift_, to = (block + 1) << block_shift_;
        rows_.release(from * area_.stride_bytes, to * area_.stride_bytes);
        if (area_.sights != nullptr) sights_.release(from * sizeof(Sight), to * sizeof(Sight));
    }

    VirtualArray rows_;
    VirtualArray sights_;
    RowArea area_{};
    uint64_t limit_ = 0;
    uint64_t next_ = 1;  // row 0 means no row
    uint64_t live_ = 0;
    FreeRows free_;
    // Rows are counted in blocks of 2^block_shift_, at least a huge page each.
    unsigned block_shift_ = 0;
    std::vector<uint32_t> used_;
    uint64_t used_blocks_ = 0;
    size_t spare_ = kNoBlock;
    std::vector<uint32_t> retiring_;
    std::deque<Waiting> waiting_;
    size_t waiting_count_ = 0;
};

}  // namespace minutely
