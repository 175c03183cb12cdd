#include "index.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace minutely {

namespace {

// The index grows by a fifth when three quarters of its slots are used: 16 bytes a slot make 21 to 26 bytes an id.
// Fuller would send more lookups to their second bucket, emptier would cost memory, larger steps both.
constexpr uint64_t kLoadNumerator = 3, kLoadDenominator = 4;
constexpr uint64_t kGrowthDivisor = 5;
constexpr uint64_t kSmallestCount = 16;
constexpr uint64_t kMostBuckets = uint64_t{1} << 30;
// Below this many buckets growth is one step and by a factor of two.
constexpr uint64_t kIncrementalCount = 1024;
// Old buckets moved per inserted id: a growth is over after about half of the inserts that lead to the next one.
constexpr uint64_t kMigratePerInsert = 4;
constexpr uint64_t kInsertsPerStep = 32;
// Breadth-first search looks at no more than this many buckets (five levels of two roots) before it gives up.
constexpr int kLongestSearch = 512;
constexpr uint64_t kAhead = 8;
// An id that finds no place in an index emptier than this shares its buckets with too many others: growing would not
// help.
constexpr uint64_t kCrowdedNumerator = 1, kCrowdedDenominator = 2;

uint64_t buckets_for(uint64_t capacity) {
    const uint64_t slots = capacity * kLoadDenominator / kLoadNumerator + 1;
    return std::max(kSmallestCount, (slots + kSlotsPerBucket - 1) / kSlotsPerBucket);
}

Slot* free_slot(Bucket* bucket) {
    for (Slot& slot : bucket->slots) {
        if (!slot.used()) return &slot;
    }
    return nullptr;
}

Slot* slot_of(Bucket* bucket, uint64_t id) {
    for (Slot& slot : bucket->slots) {
        if (slot.key == id && slot.used()) return &slot;
    }
    return nullptr;
}

}  // namespace

Index::Index(uint64_t seed, uint64_t capacity)
    : hash_(seed), memory_(kMostBuckets * sizeof(Bucket)), old_count_(buckets_for(capacity)), count_(old_count_.load()),
      overflow_(0, OverflowHash{hash_.mask}) {
    memory_.commit(count_.load() * sizeof(Bucket));
}

void Index::set_shape(uint64_t old_count, uint64_t count, uint64_t frontier) {
    shape_.fetch_add(1, std::memory_order_acq_rel);
    old_count_.store(old_count, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    frontier_.store(frontier, std::memory_order_release);
    shape_.fetch_add(1, std::memory_order_release);
}

Slot Index::find(uint64_t id) const {
    const Hashes hashes = hash_.both(id);
    for (;;) {
        const uint64_t before = moves();
        const Buckets now = buckets();
        for (const uint64_t hash : {hashes.first, hashes.second}) {
            for (const Slot& place : now.bucket(hash)->slots) {
                const Slot slot = load_slot(&place);
                if (slot.key == id && slot.used()) return slot;
            }
        }
        if (overflow_size_.load(std::memory_order_acquire) > 0) {
            const std::scoped_lock lock(overflow_mutex_);
            const auto found = overflow_.find(id);
            if (found != overflow_.end()) return found->second;
        }
        // The loads above come before the second look at the count, as in a sequence lock.
        std::atomic_thread_fence(std::memory_order_acquire);
        if (moves() == before) return Slot{id, kNoRow, 0};
    }
}

Slot* Index::locate(uint64_t id) {
    const Buckets now = buckets();
    const Hashes hashes = hash_.both(id);
    if (Slot* slot = slot_of(now.bucket(hashes.first), id)) return slot;
    if (Slot* slot = slot_of(now.bucket(hashes.second), id)) return slot;
    if (!overflow_.empty()) {
        const auto found = overflow_.find(id);
        if (found != overflow_.end()) return &found->second;
    }
    return nullptr;
}

void Index::insert(const Slot& slot) {
    if (++inserts_ % kInsertsPerStep == 0) migrate(kInsertsPerStep * kMigratePerInsert);
    const uint64_t slots = count_.load(std::memory_order_relaxed) * kSlotsPerBucket;
    if (!growing() && (size_ + 1) * kLoadDenominator > slots * kLoadNumerator) start_growth();
    place(slot);
    ++size_;
}

void Index::replace(Slot* slot, const Slot& content) {
    if (in_overflow(slot)) {
        const std::scoped_lock lock(overflow_mutex_);
        *slot = content;
    } else {
        store_slot(slot, content);
    }
}

void Index::erase(Slot* slot) {
    --size_;
    if (in_overflow(slot)) {
        const std::scoped_lock lock(overflow_mutex_);
        overflow_.erase(slot->key);
        overflow_size_.store(overflow_.size(), std::memory_order_release);
    } else {
        store_slot(slot, Slot{0, kNoRow, 0});
    }
}

bool Index::in_overflow(const Slot* slot) const {
    if (overflow_.empty()) return false;
    const auto found = overflow_.find(slot->key);
    return found != overflow_.end() && &found->second == slot;
}

void Index::put_overflow(const Slot& slot) {
    const std::scoped_lock lock(overflow_mutex_);
    overflow_.emplace(slot.key, slot);
    overflow_size_.store(overflow_.size(), std::memory_order_release);
}

std::vector<uint64_t> Index::overflow_ids() const {
    std::vector<uint64_t> ids;
    for (const auto& [id, slot] : overflow_) ids.push_back(id);
    std::sort(ids.begin(), ids.end());
    return ids;
}

void Index::place(const Slot& slot) {
    const Hashes hashes = hash_.both(slot.key);
    for (;;) {
        const Buckets now = buckets();
        Bucket* first = now.bucket(hashes.first);
        Bucket* second = now.bucket(hashes.second);
        if (settle_in(slot, first, second)) return;
        const uint64_t slots = now.count * kSlotsPerBucket;
        if (growing() || size_ * kCrowdedDenominator < slots * kCrowdedNumerator) break;
        start_growth();
        if (growing()) break;
    }
    put_overflow(slot);
}

bool Index::settle_in(const Slot& slot, Bucket* first, Bucket* second) {
    Slot* place = free_slot(first);
    if (place == nullptr) place = send_home(first);
    if (place == nullptr) place = free_slot(second);
    if (place == nullptr) return displace(slot, first, second);
    store_slot(place, slot);
    return true;
}

// A lookup that ends in the first bucket costs one miss less. So a key that was put into its second bucket when its
// first was full goes back when another key wants its place and the first has room again. Returns the slot that this
// frees, if any.
Slot* Index::send_home(Bucket* bucket) {
    const Buckets now = buckets();
    for (Slot& slot : bucket->slots) {
        Bucket* home = now.bucket(hash_.first(slot.key));
        if (home == bucket) continue;
        if (Slot* place = free_slot(home)) {
            store_slot(place, slot);
            moved();
            return &slot;
        }
    }
    return nullptr;
}

bool Index::displace(const Slot& slot, Bucket* first, Bucket* second) {
    struct Step {
        Bucket* bucket;
        int16_t parent;
        int8_t slot_in_parent;
        uint64_t key;
    };
    const Buckets now = buckets();
    std::array<Step, kLongestSearch> steps;
    steps[0] = {first, -1, 0, 0};
    int count = 1;
    if (second != first) steps[count++] = {second, -1, 0, 0};
    for (int at = 0; at < count; ++at) {
        if (Slot* place = free_slot(steps[at].bucket)) {
            // Walk back from the free slot; a key is copied forward before its own slot is overwritten.
            int child = at;
            while (steps[child].parent >= 0) {
                Slot* from = &steps[steps[child].parent].bucket->slots[steps[child].slot_in_parent];
                if (from->key != steps[child].key || !from->used()) return false;
                store_slot(place, *from);
                moved();
                place = from;
                child = steps[child].parent;
            }
            store_slot(place, slot);
            return true;
        }
        for (int i = 0; i < kSlotsPerBucket && count < kLongestSearch; ++i) {
            const uint64_t key = steps[at].bucket->slots[i].key;
            const Hashes hashes = hash_.both(key);
            Bucket* one = now.bucket(hashes.first);
            Bucket* other = one == steps[at].bucket ? now.bucket(hashes.second) : one;
            if (other == steps[at].bucket) continue;
            __builtin_prefetch(other);
            steps[count++] = {other, static_cast<int16_t>(at), static_cast<int8_t>(i), key};
        }
    }
    return false;
}

void Index::start_growth() {
    const uint64_t before = count_.load(std::memory_order_relaxed);
    const bool at_once = before < kIncrementalCount;
    const uint64_t after = at_once ? before * 2 : before + before / kGrowthDivisor;
    if (after > kMostBuckets)
        throw std::length_error("an index holds at most " + std::to_string(kMostBuckets) + " buckets");
    memory_.commit(after * sizeof(Bucket));
    set_shape(before, after, before);
    if (at_once) migrate(before);
}

void Index::migrate(uint64_t buckets) {
    for (; buckets > 0 && growing(); --buckets) {
        const uint64_t next = frontier_.load(std::memory_order_relaxed) - 1;
        if (next >= kAhead) prefetch_homes(this->buckets(), next - kAhead);
        move_bucket(next);
    }
    if (!growing() && old_count_.load(std::memory_order_relaxed) != count_.load(std::memory_order_relaxed)) {
        set_shape(count_.load(), count_.load(), 0);
        if (!overflow_.empty()) settle(overflow_ids());
    }
}

// Keys in their second bucket are moved to their first where that has room, which is anywhere.
void Index::prefetch_homes(const Buckets& now, uint64_t old_index) const {
    if (old_index >= kAhead) __builtin_prefetch(now.data + old_index - kAhead);
    for (const Slot& slot : now.data[old_index].slots) {
        if (!slot.used()) continue;
        const uint64_t hash = hash_.first(slot.key);
        if (high_product(hash, now.old_count) != old_index) __builtin_prefetch(now.bucket(hash));
    }
}

void Index::move_bucket(uint64_t old_index) {
    const Buckets now = buckets();
    Bucket* from = now.data + old_index;
    std::array<Slot*, kSlotsPerBucket> away, left;
    int away_count = 0, left_count = 0;
    std::vector<uint64_t> crowded;
    const auto move = [&](Slot* slot, Slot* place) {
        if (place != nullptr) {
            store_slot(place, *slot);
        } else {
            // It waits in the overflow, visible, until the displacement that makes room is done.
            put_overflow(*slot);
            crowded.push_back(slot->key);
        }
        left[left_count++] = slot;
    };
    for (Slot& slot : from->slots) {
        if (!slot.used()) continue;
        const uint64_t hash = hash_.first(slot.key);
        if (high_product(hash, now.old_count) != old_index) {
            away[away_count++] = &slot;
            continue;
        }
        Bucket* to = now.data + high_product(hash, now.count);
        if (to != from) move(&slot, free_slot(to));
    }
    for (int i = 0; i < away_count; ++i) {
        const Hashes hashes = hash_.both(away[i]->key);
        Bucket* to = now.data + high_product(hashes.second, now.count);
        Slot* place = free_slot(now.bucket(hashes.first));
        if (place == nullptr && to == from) continue;
        move(away[i], place != nullptr ? place : free_slot(to));
    }
    frontier_.store(old_index, std::memory_order_release);
    // From here on a reader that missed looks again, with the new frontier; only then do the old places empty.
    moved();
    for (int i = 0; i < left_count; ++i) store_slot(left[i], Slot{0, kNoRow, 0});
    if (!crowded.empty()) settle(crowded);
}

void Index::settle(const std::vector<uint64_t>& ids) {
    for (const uint64_t id : ids) {
        const Hashes hashes = hash_.both(id);
        const Buckets now = buckets();
        if (!settle_in(overflow_.at(id), now.bucket(hashes.first), now.bucket(hashes.second))) continue;
        moved();
        const std::scoped_lock lock(overflow_mutex_);
        overflow_.erase(id);
        overflow_size_.store(overflow_.size(), std::memory_order_release);
    }
}

}  // namespace minutely
