// One packed record for each key, found by a hash of it. No clock: times come with what happened.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace minutely {

// What an operation is: a key is read, was served, or the action `what - kFirstAction` happened on it.
constexpr int32_t kRead = 0, kServed = 1, kFirstAction = 2;
constexpr int64_t kNever = INT64_MIN;

// Keeps words of each key, the first of which is when its newest event was; a new key begins with those of `blank`.
// Where nothing happened for longer than `expire_ms`, a record is over, and its memory may be taken back.
class Records {
  public:
    Records(int64_t expire_ms, std::vector<uint64_t> blank)
        : expire_ms_(expire_ms), blank_(std::move(blank)), words_(1 + blank_.size()), slots_(kFewest, 0) {
        blank_[0] = static_cast<uint64_t>(kNever);
    }

    size_t keys() const { return words_ ? records_.size() / words_ : 0; }
    size_t width() const { return words_ - 1; }
    size_t bytes() const { return records_.capacity() * sizeof(uint64_t) + slots_.capacity() * sizeof(uint32_t); }
    const std::vector<uint64_t>& blank() const { return blank_; }
    bool is_over(const uint64_t* found, int64_t at) const { return at - static_cast<int64_t>(found[0]) > expire_ms_; }
    bool is_too_late(const uint64_t* found, int64_t at) const {
        return static_cast<int64_t>(found[0]) - at > expire_ms_;
    }

    // A key waits for memory twice, so what those after the i-th need is asked for before.
    void ask_ahead(const int64_t* keys, size_t i, size_t count) const {
        if (i + 2 * kAhead < count) __builtin_prefetch(&slots_[home_of(static_cast<uint64_t>(keys[i + 2 * kAhead]))]);
        if (i + kAhead >= count) return;
        const uint32_t number = slots_[home_of(static_cast<uint64_t>(keys[i + kAhead]))];
        if (number == 0) return;
        for (size_t at = 0; at < std::min(words_, kAsked); at += 8) __builtin_prefetch(record(number) + at);
    }

    // The words of a key; null if it is not kept.
    const uint64_t* find(int64_t key) const {
        const uint32_t number = slots_[slot_of(static_cast<uint64_t>(key))];
        return number ? record(number) + 1 : nullptr;
    }

    // The words of a key at which something happens at this time; if it is new, its newest event is this one.
    uint64_t* find_or_add(int64_t signed_key, int64_t at) {
        latest_ = std::max(latest_, at);
        const auto key = static_cast<uint64_t>(signed_key);
        size_t slot = slot_of(key);
        if (slots_[slot] == 0) {
            if (2 * (keys() + 1) > slots_.size()) {
                make_room();
                slot = slot_of(key);
            }
            records_.push_back(key);
            records_.insert(records_.end(), blank_.begin(), blank_.end());
            slots_[slot] = static_cast<uint32_t>(keys());
            records_[records_.size() - width()] = static_cast<uint64_t>(at);
        }
        return &records_[(slots_[slot] - 1) * words_ + 1];
    }

    // Copies the words of keys. A key that is not kept has its newest event never.
    void pack(const int64_t* keys, size_t count, uint64_t* out) const {
        for (size_t i = 0; i < count; ++i, out += width()) {
            const uint64_t* found = find(keys[i]);
            std::memcpy(out, found ? found : blank_.data(), width() * sizeof(uint64_t));
        }
    }

    // Keeps of keys what `pack` copied, in place of what was kept of them.
    void put(const int64_t* keys, size_t count, const uint64_t* packed) {
        for (size_t i = 0; i < count; ++i, packed += width()) {
            const auto newest = static_cast<int64_t>(packed[0]);
            if (newest != kNever) std::memcpy(find_or_add(keys[i], newest), packed, width() * sizeof(uint64_t));
        }
    }

  private:
    static constexpr size_t kFewest = 64;
    static constexpr size_t kAhead = 8;    // keys
    static constexpr size_t kAsked = 128;  // words of each at most; what follows them comes by itself

    static uint64_t mixed(uint64_t z) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }

    size_t home_of(uint64_t key) const { return mixed(key) & (slots_.size() - 1); }

    // The slot that has the key, or the free one where it belongs.
    size_t slot_of(uint64_t key) const {
        const size_t mask = slots_.size() - 1;
        size_t slot = home_of(key);
        while (slots_[slot] != 0 && record(slots_[slot])[0] != key) slot = (slot + 1) & mask;
        return slot;
    }
    const uint64_t* record(uint32_t number) const { return &records_[(number - 1) * words_]; }

    // Takes back the memory of keys that are over, and doubles the index where that leaves it more than a quarter full:
    // so what it costs is spread over many additions.
    void make_room() {
        size_t kept = 0;
        for (size_t i = 0; i < keys(); ++i) {
            const uint64_t* found = &records_[i * words_];
            if (is_over(found + 1, latest_)) continue;
            if (kept != i) std::memcpy(&records_[kept * words_], found, words_ * sizeof(uint64_t));
            ++kept;
        }
        records_.resize(kept * words_);
        const size_t size = 4 * kept > slots_.size() ? 2 * slots_.size() : slots_.size();
        slots_.assign(size, 0);
        for (size_t i = 0; i < kept; ++i) slots_[slot_of(records_[i * words_])] = static_cast<uint32_t>(i + 1);
    }

    int64_t expire_ms_;
    std::vector<uint64_t> blank_;
    size_t words_;
    std::vector<uint64_t> records_;  // of each key: itself, when its newest event was, and what else is kept
    std::vector<uint32_t> slots_;    // the number of a record, from 1; at most half of them are taken
    int64_t latest_ = kNever;
};

}  // namespace minutely
