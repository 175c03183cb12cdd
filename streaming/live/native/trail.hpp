// The last actions at each key and the ids of what they were on. No clock, no I/O: times come with what happened.
#pragma once

#include "records.hpp"

namespace minutely {

// Keeps for each key its newest `last` actions that are no older than `within_ms`, in the order of their time, whatever
// the order in which they arrive: those of one time are in that of their actions, then of their ids.
class Trail {
  public:
    Trail(int64_t within_ms, int32_t last, int32_t actions, int32_t fields)
        : within_ms_(within_ms), last_(last), actions_(actions), fields_(fields), words_(2 + fields),
          records_(within_ms, blank()) {}

    Records& records() { return records_; }
    const Records& records() const { return records_; }
    int32_t actions() const { return actions_; }
    int32_t fields() const { return fields_; }

    // Takes operations in their order, with `ids` [count, fields] of what they are on; servings are passed over. Each
    // read writes how many actions it found; they are in `found` until the next call: time, action and ids of each.
    void take(const int64_t* keys, const int32_t* what, const int64_t* at, const int64_t* ids, size_t count,
              int64_t* lengths) {
        found_.clear();
        for (size_t i = 0; i < count; ++i) {
            records_.ask_ahead(keys, i, count);
            if (what[i] == kRead)
                *lengths++ = read(keys[i], at[i]);
            else if (what[i] >= kFirstAction)
                note(keys[i], what[i] - kFirstAction, at[i], ids + i * fields_);
        }
    }
    const std::vector<int64_t>& found() const { return found_; }

  private:
    // Of a key: when its newest action was, then its actions, the oldest first; where there are fewer, others never
    // were.
    std::vector<uint64_t> blank() const {
        std::vector<uint64_t> words(1 + last_ * words_, 0);
        for (size_t i = 0; i < last_; ++i) words[1 + i * words_] = static_cast<uint64_t>(kNever);
        return words;
    }

    int64_t read(int64_t key, int64_t at) {
        const uint64_t* words = records_.find(key);
        if (words == nullptr || records_.is_over(words, at)) return 0;
        int64_t length = 0;
        for (size_t i = 0; i < last_; ++i) {
            const uint64_t* each = words + 1 + i * words_;
            const auto time = static_cast<int64_t>(each[0]);
            if (time == kNever || at - time > within_ms_) continue;
            for (size_t word = 0; word < words_; ++word) found_.push_back(static_cast<int64_t>(each[word]));
            ++length;
        }
        return length;
    }

    void note(int64_t key, int32_t action, int64_t at, const int64_t* ids) {
        uint64_t* found = records_.find_or_add(key, at);
        found[0] = static_cast<uint64_t>(std::max(static_cast<int64_t>(found[0]), at));
        added_.assign({at, action});
        added_.insert(added_.end(), ids, ids + fields_);
        uint64_t* oldest = found + 1;
        size_t place = 0;  // where it goes, as many older ones making room by one
        while (place < last_ && is_older(oldest + place * words_)) ++place;
        if (place == 0) return;
        std::memmove(oldest, oldest + words_, (place - 1) * words_ * sizeof(uint64_t));
        std::memcpy(oldest + (place - 1) * words_, added_.data(), words_ * sizeof(uint64_t));
    }

    bool is_older(const uint64_t* each) const {
        const auto* signed_each = reinterpret_cast<const int64_t*>(each);
        return std::lexicographical_compare(signed_each, signed_each + words_, added_.begin(), added_.end());
    }

    int64_t within_ms_;
    size_t last_;
    int32_t actions_;
    size_t fields_, words_;
    std::vector<int64_t> found_, added_;
    Records records_;
};

}  // namespace minutely
