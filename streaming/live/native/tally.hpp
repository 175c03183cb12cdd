// Counts and times by key, from what happens: one packed record a key. No clock, no I/O: times come with what happened.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace minutely {

// What an operation is: a key is read, was served, or the action `what - kFirstAction` happened on it.
constexpr int32_t kRead = 0, kServed = 1, kFirstAction = 2;
constexpr int64_t kNever = INT64_MIN;

// Keeps for each key, as the options say, when it was first and last served and when each action last happened on it,
// and counts of servings and actions that halve with every half-life. A key at which nothing happened for longer than
// `expire_ms` counts as new, whether its memory was taken back yet or not.
class Tally {
  public:
    Tally(int64_t expire_ms, std::vector<double> half_lives_ms, int32_t actions, bool keeps_times)
        : expire_ms_(expire_ms), half_lives_(std::move(half_lives_ms)), kinds_(1 + actions),
          times_(keeps_times ? 2 + actions : 0), words_(2 + times_ + half_lives_.size() * kinds_),
          factors_(half_lives_.size()), slots_(kFewest, 0) {}

    size_t keys() const { return words_ ? records_.size() / words_ : 0; }
    size_t width() const { return words_ - 1; }
    size_t bytes() const { return records_.capacity() * sizeof(uint64_t) + slots_.capacity() * sizeof(uint32_t); }
    int32_t actions() const { return static_cast<int32_t>(kinds_) - 1; }

    // Takes operations in their order. `at` is when they happen, `counted_at` as of when one counts: a click counts as
    // of its serving. Each read writes `width()` numbers: the time of the newest event, the times kept, and the counts,
    // those of servings first, for one half-life after another; a time that is unknown is NaN.
    void take(const int64_t* keys, const int32_t* what, const int64_t* at, const int64_t* counted_at, size_t count,
              double* out) {
        for (size_t i = 0; i < count; ++i) {
            if (i + 2 * kAhead < count) __builtin_prefetch(&slots_[home_of(keys[i + 2 * kAhead])]);
            if (i + kAhead < count) ask_for(keys[i + kAhead]);
            if (what[i] == kRead) {
                read(keys[i], at[i], out);
                out += width();
            } else {
                note(keys[i], what[i] - kServed, at[i], counted_at[i]);
            }
        }
    }

    // Copies what is kept of keys, `width()` words each: when the newest event was, times, counts. A key that is not
    // kept has its newest event never.
    void pack(const int64_t* keys, size_t count, uint64_t* out) const {
        for (size_t i = 0; i < count; ++i, out += width()) {
            const uint32_t number = slots_[slot_of(static_cast<uint64_t>(keys[i]))];
            if (number) {
                std::memcpy(out, record(number) + 1, width() * sizeof(uint64_t));
            } else {
                std::memset(out, 0, width() * sizeof(uint64_t));
                out[0] = static_cast<uint64_t>(kNever);
            }
        }
    }

    // Keeps of keys what `pack` copied, in place of what was kept of them.
    void put(const int64_t* keys, size_t count, const uint64_t* packed) {
        for (size_t i = 0; i < count; ++i, packed += width()) {
            const int64_t newest = as_time(packed[0]);
            if (newest == kNever) continue;
            latest_ = std::max(latest_, newest);
            std::memcpy(find_or_add(static_cast<uint64_t>(keys[i]), newest) + 1, packed, width() * sizeof(uint64_t));
        }
    }

  private:
    static constexpr size_t kFewest = 64;
    static constexpr size_t kAhead = 8;  // a key waits for memory twice, so what later ones need is asked for before

    static uint64_t mixed(uint64_t z) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }

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

    size_t home_of(int64_t key) const { return mixed(static_cast<uint64_t>(key)) & (slots_.size() - 1); }
    void ask_for(int64_t key) const {
        const uint32_t number = slots_[home_of(key)];
        if (number == 0) return;
        for (size_t at = 0; at < words_; at += 8) __builtin_prefetch(record(number) + at);
    }

    // The slot that has the key, or the free one where it belongs.
    size_t slot_of(uint64_t key) const {
        const size_t mask = slots_.size() - 1;
        size_t slot = mixed(key) & mask;
        while (slots_[slot] != 0 && record(slots_[slot])[0] != key) slot = (slot + 1) & mask;
        return slot;
    }
    const uint64_t* record(uint32_t number) const { return &records_[(number - 1) * words_]; }
    bool is_over(const uint64_t* found, int64_t at) const { return at - as_time(found[1]) > expire_ms_; }

    void decay(double elapsed_ms) {
        for (size_t h = 0; h < half_lives_.size(); ++h) factors_[h] = std::exp2(-elapsed_ms / half_lives_[h]);
    }

    void read(int64_t key, int64_t at, double* out) {
        const uint32_t number = slots_[slot_of(static_cast<uint64_t>(key))];
        const uint64_t* found = number ? record(number) : nullptr;
        if (found == nullptr || is_over(found, at)) {
            for (size_t i = 0; i < 1 + times_; ++i) out[i] = std::nan("");
            for (size_t i = 1 + times_; i < width(); ++i) out[i] = 0;
            return;
        }
        for (size_t i = 0; i < 1 + times_; ++i) {
            const int64_t time = as_time(found[1 + i]);
            out[i] = time == kNever ? std::nan("") : static_cast<double>(time);
        }
        // By a clock that is behind, counts are those of the newest event: they never grow before it.
        decay(static_cast<double>(std::max<int64_t>(at - as_time(found[1]), 0)));
        const uint64_t* counts = found + 2 + times_;
        for (size_t i = 0; i < half_lives_.size() * kinds_; ++i)
            out[1 + times_ + i] = as_count(counts[i]) * factors_[i / kinds_];
    }

    void note(int64_t key, int32_t kind, int64_t at, int64_t counted_at) {
        latest_ = std::max(latest_, at);
        uint64_t* found = find_or_add(static_cast<uint64_t>(key), at);
        const int64_t newest = as_time(found[1]);
        if (is_over(found, at)) {
            begin(found, at);
        } else if (newest - at > expire_ms_) {
            return;  // so late that the key was new since
        }
        uint64_t* counts = found + 2 + times_;
        if (at > as_time(found[1])) {
            decay(static_cast<double>(at - as_time(found[1])));
            for (size_t i = 0; i < half_lives_.size() * kinds_; ++i)
                counts[i] = as_word(as_count(counts[i]) * factors_[i / kinds_]);
            found[1] = static_cast<uint64_t>(at);
        }
        decay(static_cast<double>(as_time(found[1]) - counted_at));
        for (size_t h = 0; h < half_lives_.size(); ++h) {
            uint64_t& word = counts[h * kinds_ + kind];
            word = as_word(as_count(word) + factors_[h]);
        }
        if (times_ == 0) return;
        uint64_t* times = found + 2;
        if (kind == 0 && (as_time(times[0]) == kNever || at < as_time(times[0]))) times[0] = static_cast<uint64_t>(at);
        times[1 + kind] = static_cast<uint64_t>(std::max(as_time(times[1 + kind]), at));
    }

    void begin(uint64_t* found, int64_t at) {
        found[1] = static_cast<uint64_t>(at);
        for (size_t i = 0; i < times_; ++i) found[2 + i] = static_cast<uint64_t>(kNever);
        for (size_t i = 2 + times_; i < words_; ++i) found[i] = as_word(0);
    }

    uint64_t* find_or_add(uint64_t key, int64_t at) {
        size_t slot = slot_of(key);
        if (slots_[slot] == 0) {
            if (2 * (keys() + 1) > slots_.size()) {
                make_room();
                slot = slot_of(key);
            }
            records_.resize(records_.size() + words_);
            slots_[slot] = static_cast<uint32_t>(keys());
            uint64_t* added = &records_[records_.size() - words_];
            added[0] = key;
            begin(added, at);
        }
        return &records_[(slots_[slot] - 1) * words_];
    }

    // Takes back the memory of keys that are over, and doubles the index where that leaves it more than a quarter full:
    // so what it costs is spread over many additions.
    void make_room() {
        size_t kept = 0;
        for (size_t i = 0; i < keys(); ++i) {
            const uint64_t* found = &records_[i * words_];
            if (is_over(found, latest_)) continue;
            if (kept != i) std::memcpy(&records_[kept * words_], found, words_ * sizeof(uint64_t));
            ++kept;
        }
        records_.resize(kept * words_);
        const size_t size = 4 * kept > slots_.size() ? 2 * slots_.size() : slots_.size();
        slots_.assign(size, 0);
        for (size_t i = 0; i < kept; ++i) slots_[slot_of(records_[i * words_])] = static_cast<uint32_t>(i + 1);
    }

    int64_t expire_ms_;
    std::vector<double> half_lives_;
    size_t kinds_, times_, words_;
    std::vector<double> factors_;
    std::vector<uint64_t> records_;  // of each key: itself, when its newest event was, times, counts
    std::vector<uint32_t> slots_;    // the number of a record, from 1; at most half of them are taken
    int64_t latest_ = kNever;
};

}  // namespace minutely
