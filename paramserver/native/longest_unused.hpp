// Which rows go first where a table is full: by when they were last seen, then by id.
//
// Keeping all rows in that order would cost every touch of one. So the oldest are listed once for many evictions; what
// is listed and was seen since is passed over, and a new row that is older than the youngest listed joins the list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace minutely {

class LongestUnused {
  public:
    using Key = std::pair<uint32_t, int64_t>;  // last seen, id

    bool empty() const { return heap_.empty(); }
    size_t size() const { return heap_.size(); }

    // Lists the `count` smallest keys of what each(take) hands to take(key), in memory for twice as many.
    template <class Each> void list(size_t count, Each each) {
        clear();
        const auto cut = [&] {
            if (heap_.size() <= count) return;
            const auto end = heap_.begin() + static_cast<std::ptrdiff_t>(count);
            std::nth_element(heap_.begin(), end, heap_.end());
            heap_.erase(end, heap_.end());
        };
        heap_.reserve(2 * count);
        each([&](const Key& key) {
            heap_.push_back(key);
            if (heap_.size() == 2 * count) cut();
        });
        cut();
        youngest_ = *std::max_element(heap_.begin(), heap_.end());
        std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
    }

    // A row that was just made.
    void add(int64_t id, uint32_t last_seen_seconds) {
        const Key key{last_seen_seconds, id};
        if (heap_.empty() || youngest_ < key) return;
        heap_.push_back(key);
        std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    }

    Key take() {
        std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
        const Key key = heap_.back();
        heap_.pop_back();
        return key;
    }

    void clear() { std::exchange(heap_, {}); }  // with its memory

  private:
    std::vector<Key> heap_;
    Key youngest_{0, 0};
};

}  // namespace minutely
