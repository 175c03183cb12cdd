// Counts and times by key, from what happens: one packed record a key. No clock, no I/O: times come with what happened.
#pragma once

#include <cmath>

#include "records.hpp"

namespace minutely {

// Keeps for each key, as the options say, when it was first and last served and when each action last happened on it,
// and counts of servings and actions that halve with every half-life. A key at which nothing happened for longer than
// `expire_ms` counts as new, whether its memory was taken back yet or not.
class Tally {
  public:
    Tally(int64_t expire_ms, std::vector<double> half_lives_ms, int32_t actions, bool keeps_times)
        : half_lives_(std::move(half_lives_ms)), kinds_(1 + actions), times_(keeps_times ? 2 + actions : 0),
          factors_(half_lives_.size()), records_(expire_ms, blank()) {}

    Records& records() { return records_; }
    const Records& records() const { return records_; }
    int32_t actions() const { return static_cast<int32_t>(kinds_) - 1; }

    // Takes operations in their order. `at` is when they happen, `counted_at` as of when one counts: a click counts as
    // of its serving. Each read writes `width()` numbers: the time of the newest event, the times kept, and the counts,
    // those of servings first, for one half-life after another; a time that is unknown is NaN.
    void take(const int64_t* keys, const int32_t* what, const int64_t* at, const int64_t* counted_at, size_t count,
              double* out) {
        for (size_t i = 0; i < count; ++i) {
            records_.ask_ahead(keys, i, count);
            if (what[i] == kRead) {
                read(keys[i], at[i], out);
                out += records_.width();
            } else {
                note(keys[i], what[i] - kServed, at[i], counted_at[i]);
            }
        }
    }

  private:
    static int64_t as_time(uint64_t word) { return static_cast<int64_t>(word); }
    static double as_count(uint64_t word) {
        double count;
        std::memcpy(&count, &word, sizeof count);
        return count;
    }
    static uint64_t as_word(double count) {
        uint64_t word;
        std::memcpy(&word, &count, sizeof word);
        return word;
    }

    // Of a key: when its newest event was, times, counts.
    std::vector<uint64_t> blank() const {
        std::vector<uint64_t> words(1 + times_ + half_lives_.size() * kinds_, as_word(0));
        std::fill_n(words.begin() + 1, times_, static_cast<uint64_t>(kNever));
        return words;
    }

    void decay(double elapsed_ms) {
        for (size_t h = 0; h < half_lives_.size(); ++h) factors_[h] = std::exp2(-elapsed_ms / half_lives_[h]);
    }

    void read(int64_t key, int64_t at, double* out) {
        const uint64_t* found = records_.find(key);
        const size_t width = records_.width();
        if (found == nullptr || records_.is_over(found, at)) {
            for (size_t i = 0; i < 1 + times_; ++i) out[i] = std::nan("");
            for (size_t i = 1 + times_; i < width; ++i) out[i] = 0;
            return;
        }
        for (size_t i = 0; i < 1 + times_; ++i) {
            const int64_t time = as_time(found[i]);
            out[i] = time == kNever ? std::nan("") : static_cast<double>(time);
        }
        // By a clock that is behind, counts are those of the newest event: they never grow before it.
        decay(static_cast<double>(std::max<int64_t>(at - as_time(found[0]), 0)));
        const uint64_t* counts = found + 1 + times_;
        for (size_t i = 0; i < half_lives_.size() * kinds_; ++i)
            out[1 + times_ + i] = as_count(counts[i]) * factors_[i / kinds_];
    }

    void note(int64_t key, int32_t kind, int64_t at, int64_t counted_at) {
        uint64_t* found = records_.find_or_add(key, at);
        if (records_.is_over(found, at)) {
            std::copy(records_.blank().begin(), records_.blank().end(), found);
            found[0] = static_cast<uint64_t>(at);
        } else if (records_.is_too_late(found, at)) {
            return;  // the key was new since
        }
        uint64_t* counts = found + 1 + times_;
        if (at > as_time(found[0])) {
            decay(static_cast<double>(at - as_time(found[0])));
            for (size_t i = 0; i < half_lives_.size() * kinds_; ++i)
                counts[i] = as_word(as_count(counts[i]) * factors_[i / kinds_]);
            found[0] = static_cast<uint64_t>(at);
        }
        decay(static_cast<double>(as_time(found[0]) - counted_at));
        for (size_t h = 0; h < half_lives_.size(); ++h) {
            uint64_t& word = counts[h * kinds_ + kind];
            word = as_word(as_count(word) + factors_[h]);
        }
        if (times_ == 0) return;
        uint64_t* times = found + 1;
        if (kind == 0 && (as_time(times[0]) == kNever || at < as_time(times[0]))) times[0] = static_cast<uint64_t>(at);
        times[1 + kind] = static_cast<uint64_t>(std::max(as_time(times[1 + kind]), at));
    }

    std::vector<double> half_lives_;
    size_t kinds_, times_;
    std::vector<double> factors_;
    Records records_;
};

}  // namespace minutely
