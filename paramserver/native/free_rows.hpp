// Which row numbers are free, the lowest first: live rows stay at the front of the slab, so that what lies behind them
// can be given back.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

namespace minutely {

// A set of numbers below 2^36 as a tree of bits: a bit of one level says that a word of the level below has bits.
class FreeRows {
  public:
    bool empty() const { return levels_.back().empty() || levels_.back()[0] == 0; }

    void add(uint32_t row) {
        uint64_t at = row;
        for (auto& level : levels_) {
            if (at / 64 >= level.size()) level.resize(at / 64 + 1);
            level[at / 64] |= uint64_t{1} << (at % 64);
            at /= 64;
        }
    }

    uint32_t lowest() const {
        uint64_t at = 0;
        for (size_t i = levels_.size(); i-- > 0;)
            at = at * 64 + static_cast<uint64_t>(std::countr_zero(levels_[i][at]));
        return static_cast<uint32_t>(at);
    }

    uint32_t take_lowest() {
        const uint32_t row = lowest();
        uint64_t at = row;
        for (auto& level : levels_) {
            level[at / 64] &= ~(uint64_t{1} << (at % 64));
            if (level[at / 64] != 0) break;
            at /= 64;
        }
        return row;
    }

  private:
    std::array<std::vector<uint64_t>, 6> levels_;
};

}  // namespace minutely
