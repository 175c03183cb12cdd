// The cuckoo index: id -> row number, in buckets of four slots, two possible buckets an id.
//
// Pagh and Rodler, "Cuckoo hashing" (2004), with buckets (Dietzfelbinger and Weidling, 2007) and breadth-first
// displacement (Li et al., "Algorithmic improvements for fast concurrent cuckoo hashing", EuroSys 2014). One writer at
// a time; any number of readers beside it. A key that moves is written to its new place before it leaves the old one,
// and `moves` counts such steps: a reader that did not find an id looks again if the count changed while it looked.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "bucket.hpp"
#include "hash.hpp"
#include "memory.hpp"
#include "overflow.hpp"

namespace minutely {

// What a reader needs to find a bucket. While the index changes size, buckets of the smaller count below `frontier` are
// in use as such, and in the place of those from it on the larger count's. Growing happens in place, from the last
// bucket down: the ids of bucket i of the smaller count belong to buckets from i on in the larger, which were emptied
// before. Shrinking is the same backwards, and the frontier rises.
struct Buckets {
    Bucket* data;
    uint64_t smaller_count;
    uint64_t count;  // the larger; the only one, and the smaller the same, while nothing changes
    uint64_t frontier;
    Hash hash;

    uint64_t index(uint64_t hash_value) const {
        // Both are computed and one is masked out: while the index grows no predictor knows which it is.
        const uint64_t smaller_index = high_product(hash_value, smaller_count);
        const uint64_t larger_index = high_product(hash_value, count);
        return smaller_index ^ ((smaller_index ^ larger_index) & -static_cast<uint64_t>(smaller_index >= frontier));
    }
    Bucket* bucket(uint64_t hash_value) const { return data + index(hash_value); }
};

// The two buckets of an id; they stay its own until the next prepare().
struct Home {
    Bucket* first;
    Bucket* second;
};

class Index {
  public:
    // Room in address space for `capacity` ids, and for no more.
    Index(uint64_t seed, uint64_t capacity);
    Index(const Index&) = delete;
    Index& operator=(const Index&) = delete;

    const Hash& hash() const { return hash_; }
    // The writer's own view is always current; a reader's is of one moment, since the parts are read until they agree.
    Buckets buckets() const {
        for (;;) {
            const uint64_t before = shape_.load(std::memory_order_acquire);
            const Buckets now{data(), smaller_count_.load(std::memory_order_relaxed),
                              count_.load(std::memory_order_relaxed), frontier_.load(std::memory_order_relaxed), hash_};
            std::atomic_thread_fence(std::memory_order_acquire);
            if (shape_.load(std::memory_order_relaxed) == before && before % 2 == 0) return now;
        }
    }
    uint64_t moves() const { return moves_.load(std::memory_order_acquire); }
    uint64_t size() const { return size_; }
    uint64_t bytes() const { return count_.load(std::memory_order_relaxed) * sizeof(Bucket); }
    uint64_t overflow_size() const { return overflow_.size(); }
    bool has_overflow() const { return overflow_size() > 0; }
    // Whether ids are on their way to another number of buckets.
    bool changing() const {
        return smaller_count_.load(std::memory_order_relaxed) != count_.load(std::memory_order_relaxed);
    }
    Home home(uint64_t id) const {
        const Hashes hashes = hash_.both(id);
        const Buckets now = buckets();
        return {now.bucket(hashes.first), now.bucket(hashes.second)};
    }

    // Any thread inside a Readers::Guard: the slot's content, with row kNoRow where the id is absent.
    Slot find(uint64_t id) const;
    // Writer only: where the id is, or nullptr. Valid until the next insert.
    Slot* locate(uint64_t id) { return locate(id, home(id)); }
    Slot* locate(uint64_t id, Home home);
    // Writer only: makes room for `count` inserts, with a share of the growth that is under way.
    void prepare(uint64_t count);
    // Writer only: grows once for `capacity` ids in all, where it would otherwise do so in steps.
    void reserve(uint64_t capacity);
    // Writer only: where far fewer ids are left than there is room for, does some of the way to fewer buckets, looking
    // at about `buckets` of them, and gives the memory back at its end.
    void shrink(uint64_t buckets);
    // Writer only: adds an id that is not there. Never fails for lack of a place.
    void insert(const Slot& slot) {
        prepare(1);
        insert(slot, home(slot.key));
    }
    // The same where prepare() counted it.
    void insert(const Slot& slot, Home home);
    // Writer only: `slot` is what locate() returned; readers see the old content or the new one.
    void replace(Slot* slot, const Slot& content) { store_slot(slot, content); }
    void erase(Slot* slot);

    // Writer only: calls visit(i, home) for i in [0, count), where the id is id(i), once its buckets had time to come
    // to the cache. visit may insert what prepare() counted, and erase.
    template <class Id, class Visit> void each_home(size_t count, Id id, Visit visit) const {
        constexpr size_t kAhead = 16;
        Home ring[kAhead];
        const auto fetch = [&](size_t i) {
            const Home home = this->home(static_cast<uint64_t>(id(i)));
            __builtin_prefetch(home.first);
            __builtin_prefetch(home.second);
            ring[i % kAhead] = home;
        };
        const uint64_t shape = shape_.load(std::memory_order_relaxed);
        for (size_t i = 0; i < std::min(kAhead, count); ++i) fetch(i);
        for (size_t i = 0; i < count; ++i) {
            const Home home = ring[i % kAhead];
            if (i + kAhead < count) fetch(i + kAhead);
            // A small index grows at once when an insert finds no place.
            const bool same = shape_.load(std::memory_order_relaxed) == shape;
            visit(i, same ? home : this->home(static_cast<uint64_t>(id(i))));
        }
    }

    // Writer only: calls visit(Slot*) for the used slots of `buckets` buckets from `position` on (a place in hash
    // order), and returns the next position, 0 at the end. visit may erase. Ids in the overflow are visited when a
    // sweep starts.
    template <class Visit> uint64_t sweep(uint64_t position, uint64_t buckets, Visit visit) {
        if (position == 0) {
            for (uint64_t id : overflow_ids()) visit(overflow_.locate(id));
        }
        for (; buckets > 0; --buckets) {
            const Buckets now = this->buckets();
            const uint64_t smaller_index = high_product(position, now.smaller_count);
            const uint64_t count = smaller_index >= now.frontier ? now.count : now.smaller_count;
            const uint64_t index = high_product(position, count);
            Bucket* bucket = now.data + index;
            __builtin_prefetch(bucket + 8);
            for (Slot& slot : bucket->slots) {
                if (slot.used()) visit(&slot);
            }
            if (index + 1 == count) return 0;
            position = first_of(index + 1, count);
        }
        return position;
    }
    // Writer only: where such a sweep would end, without a look at any slot.
    uint64_t skip(uint64_t position, uint64_t buckets) {
        if (changing()) return sweep(position, buckets, [](const Slot*) {});
        const uint64_t count = this->buckets().count;
        const uint64_t index = high_product(position, count) + buckets;
        return index >= count ? 0 : first_of(index, count);
    }
    template <class Visit> void each(Visit visit) {
        uint64_t position = 0;
        do position = sweep(position, 1024, visit);
        while (position != 0);
    }

  private:
    // The smallest hash of a bucket: ceil(index * 2^64 / count).
    static uint64_t first_of(uint64_t index, uint64_t count) {
        return static_cast<uint64_t>(((static_cast<uint128>(index) << 64) + count - 1) / count);
    }
    void place(const Slot& slot, Home home);
    bool settle_in(const Slot& slot, Home home);
    bool displace(const Slot& slot, Home home);
    void start_growth();
    void grow_to(uint64_t count);
    void set_shape(uint64_t smaller_count, uint64_t count, uint64_t frontier);
    // Does some of the change that is due: `buckets` buckets, rounded up to a block.
    void migrate(uint64_t buckets);
    void move_buckets(uint64_t low);
    uint64_t fold_bucket(uint64_t to);
    void finish_change();
    void settle(const std::vector<uint64_t>& ids);
    void moved() { moves_.fetch_add(1, std::memory_order_release); }
    std::vector<uint64_t> overflow_ids() const;

    Bucket* data() const { return reinterpret_cast<Bucket*>(memory_.data()); }

    Hash hash_;
    uint64_t most_buckets_;
    VirtualArray memory_;
    // The three are read together: shape_ is odd while they change, and counts their changes.
    std::atomic<uint64_t> shape_{0};
    std::atomic<uint64_t> smaller_count_;
    std::atomic<uint64_t> count_;
    std::atomic<uint64_t> frontier_{0};
    std::atomic<uint64_t> moves_{0};
    bool shrinking_ = false;
    uint64_t size_ = 0;
    uint64_t due_ = 0;  // old buckets to move for the inserts since the last move

    // Costs its own ids' lookups, and neither memory nor the other ids' time.
    Overflow overflow_;
};

}  // namespace minutely
