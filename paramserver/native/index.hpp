// The cuckoo index: id -> row number, in buckets of four slots, two possible buckets an id.
//
// Pagh and Rodler, "Cuckoo hashing" (2004), with buckets (Dietzfelbinger and Weidling, 2007) and breadth-first displacement
// (Li et al., "Algorithmic improvements for fast concurrent cuckoo hashing", EuroSys 2014). One writer at a time; any number
// of readers beside it. A key that moves is written to its new place before it leaves the old one, and `moves` counts such
// steps: a reader that did not find an id looks again if the count changed while it looked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "bucket.hpp"
#include "hash.hpp"
#include "memory.hpp"
#include "readers.hpp"

namespace minutely {

// What a reader needs to find a bucket. While the index grows, the first `migrated` buckets of the old array live in the
// fresh one. Immutable but for `migrated`, so that a reader's copy is consistent.
struct View {
    Bucket* old_buckets = nullptr;
    uint64_t old_count = 0;
    Bucket* fresh_buckets = nullptr;
    uint64_t fresh_count = 0;
    std::atomic<uint64_t> migrated{0};

    Bucket* bucket(uint64_t hash) const {
        const uint64_t old_index = high_product(hash, old_count);
        if (old_index >= migrated.load(std::memory_order_acquire)) return old_buckets + old_index;
        return fresh_buckets + high_product(hash, fresh_count);
    }
};

class Index {
  public:
    // Room for `capacity` ids before it grows.
    Index(uint64_t seed, Readers& readers, uint64_t capacity = 0);
    ~Index();
    Index(const Index&) = delete;
    Index& operator=(const Index&) = delete;

    const Hash& hash() const { return hash_; }
    const View& view() const { return *view_.load(std::memory_order_acquire); }
    uint64_t moves() const { return moves_.load(std::memory_order_acquire); }
    uint64_t size() const { return size_; }
    uint64_t bytes() const;
    uint64_t overflow_size() const { return overflow_size_.load(std::memory_order_acquire); }
    bool has_overflow() const { return overflow_size() > 0; }
    // Both buckets of an id that will be looked for.
    void prefetch(uint64_t id) const {
        const Hashes hashes = hash_.both(id);
        const View& now = view();
        __builtin_prefetch(now.bucket(hashes.first));
        __builtin_prefetch(now.bucket(hashes.second));
    }
    bool growing() const { return view().fresh_buckets != nullptr; }

    // Any thread inside a Readers::Guard: the slot's content, with row kNoRow where the id is absent.
    Slot find(uint64_t id) const;
    // Writer only: where the id is, or nullptr. Valid until the next insert.
    Slot* locate(uint64_t id);
    // Writer only: adds an id that is not there. Grows as needed; never fails for lack of a place.
    void insert(const Slot& slot);
    // Writer only: `slot` is what locate() returned; readers see the old content or the new one.
    void replace(Slot* slot, const Slot& content);
    void erase(Slot* slot);
    // Writer only: does some of the growth that is due, at most `buckets` old buckets.
    void migrate(uint64_t buckets);

    // Writer only: calls visit(Slot*) for the used slots of `buckets` buckets from `position` on (a place in hash order), and
    // returns the next position, 0 at the end. visit may erase. Ids in the overflow are visited when a sweep starts.
    template <class Visit> uint64_t sweep(uint64_t position, uint64_t buckets, Visit visit) {
        if (position == 0) {
            for (uint64_t id : overflow_ids()) visit(&overflow_[id]);
        }
        for (; buckets > 0; --buckets) {
            const View& now = view();
            const uint64_t old_index = high_product(position, now.old_count);
            const bool moved = old_index < now.migrated.load(std::memory_order_relaxed);
            const uint64_t count = moved ? now.fresh_count : now.old_count;
            const uint64_t index = high_product(position, count);
            Bucket* bucket = (moved ? now.fresh_buckets : now.old_buckets) + index;
            __builtin_prefetch(bucket + 8);
            for (Slot& slot : bucket->slots) {
                if (slot.used()) visit(&slot);
            }
            if (index + 1 == count) return 0;
            // The smallest hash of the next bucket: ceil((index + 1) * 2^64 / count).
            position = static_cast<uint64_t>(((static_cast<uint128>(index + 1) << 64) + count - 1) / count);
        }
        return position;
    }
    template <class Visit> void each(Visit visit) {
        uint64_t position = 0;
        do position = sweep(position, 1024, visit);
        while (position != 0);
    }

  private:
    struct Retired {
        std::unique_ptr<View> view;
        VirtualArray memory;
        uint64_t epoch;
    };

    void place(const Slot& slot);
    bool displace(const Slot& slot, Bucket* first, Bucket* second);
    void start_growth();
    void finish_growth();
    void move_bucket(View& now, uint64_t old_index);
    void settle(const std::vector<uint64_t>& ids);
    void reclaim();
    void moved() { moves_.fetch_add(1, std::memory_order_release); }
    std::vector<uint64_t> overflow_ids() const;
    void put_overflow(const Slot& slot);
    bool in_overflow(const Slot* slot) const;

    Hash hash_;
    Readers& readers_;
    std::atomic<View*> view_{nullptr};
    std::atomic<uint64_t> moves_{0};
    uint64_t size_ = 0;
    uint64_t inserts_ = 0;
    uint64_t released_ = 0;
    VirtualArray memory_;
    VirtualArray fresh_memory_;
    std::vector<Retired> retired_;

    // Ids that found no place although the index is not full: more than eight share both buckets, by craft or by chance. They
    // live in an ordinary chained map, so that they cost their own lookups and neither memory nor the other ids' time.
    mutable std::mutex overflow_mutex_;
    std::atomic<uint64_t> overflow_size_{0};
    struct OverflowHash {
        uint64_t seed;
        size_t operator()(uint64_t id) const {
            uint64_t state = id ^ seed;
            return splitmix64(state);
        }
    };
    std::unordered_map<uint64_t, Slot, OverflowHash> overflow_;
};

}  // namespace minutely
