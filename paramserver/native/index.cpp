#include "index.hpp"

#include <algorithm>
#include <array>

namespace minutely {

namespace {

// The index grows by a quarter when four fifths of its slots are used: 16 bytes a slot make 20 to 25 bytes an id. Fuller
// would send more lookups to their second bucket, emptier would cost memory, larger steps both.
constexpr uint64_t kLoadNumerator = 4, kLoadDenominator = 5;
constexpr uint64_t kGrowthDivisor = 4;
constexpr uint64_t kSmallestCount = 16;
// Below this many buckets growth is one step and by a factor of two.
constexpr uint64_t kIncrementalCount = 1024;
// Old buckets moved per inserted id: a growth by a quarter is over after half of the inserts that lead to the next one.
constexpr uint64_t kMigratePerInsert = 3;
constexpr uint64_t kInsertsPerStep = 32;
// Breadth-first search looks at no more than this many buckets (five levels of two roots) before it gives up.
constexpr int kLongestSearch = 512;
// An id that finds no place in an index emptier than this shares its buckets with too many others: growing would not help.
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

Index::Index(uint64_t seed, Readers& readers, uint64_t capacity)
    : hash_(seed), readers_(readers), overflow_(0, OverflowHash{hash_.mask}) {
    auto view = std::make_unique<View>();
    view->old_count = buckets_for(capacity);
    memory_ = VirtualArray(view->old_count * sizeof(Bucket));
    memory_.commit(view->old_count * sizeof(Bucket));
    view->old_buckets = reinterpret_cast<Bucket*>(memory_.data());
    view_.store(view.release(), std::memory_order_release);
}

Index::~Index() { delete view_.load(std::memory_order_relaxed); }

uint64_t Index::bytes() const {
    const View& now = view();
    return (now.old_count + now.fresh_count) * sizeof(Bucket) - released_;
}

Slot Index::find(uint64_t id) const {
    const Hashes hashes = hash_.both(id);
    for (;;) {
        const uint64_t before = moves();
        const View& now = view();
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
    const View& now = view();
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
    const View& now = view();
    const uint64_t slots = now.old_count * kSlotsPerBucket;
    if (now.fresh_buckets == nullptr && (size_ + 1) * kLoadDenominator > slots * kLoadNumerator) start_growth();
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
        const View& now = view();
        Bucket* first = now.bucket(hashes.first);
        Bucket* second = now.bucket(hashes.second);
        Slot* place = free_slot(first);
        if (place == nullptr) place = free_slot(second);
        if (place != nullptr) {
            store_slot(place, slot);
            return;
        }
        if (displace(slot, first, second)) return;
        const uint64_t slots = (now.old_count + now.fresh_count) * kSlotsPerBucket;
        if (now.fresh_buckets != nullptr || size_ * kCrowdedDenominator < slots * kCrowdedNumerator) break;
        start_growth();
        if (growing()) break;
    }
    put_overflow(slot);
}

bool Index::displace(const Slot& slot, Bucket* first, Bucket* second) {
    struct Step {
        Bucket* bucket;
        int16_t parent;
        int8_t slot_in_parent;
        uint64_t key;
    };
    const View& now = view();
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
    reclaim();
    const View& now = view();
    auto next = std::make_unique<View>();
    next->old_buckets = now.old_buckets;
    next->old_count = now.old_count;
    const bool at_once = now.old_count < kIncrementalCount;
    next->fresh_count = at_once ? now.old_count * 2 : now.old_count + now.old_count / kGrowthDivisor;
    fresh_memory_ = VirtualArray(next->fresh_count * sizeof(Bucket));
    fresh_memory_.commit(next->fresh_count * sizeof(Bucket));
    next->fresh_buckets = reinterpret_cast<Bucket*>(fresh_memory_.data());
    released_ = 0;
    View* before = view_.exchange(next.release(), std::memory_order_acq_rel);
    retired_.push_back({std::unique_ptr<View>(before), VirtualArray(), readers_.next_epoch()});
    if (at_once) migrate(now.old_count);
}

void Index::migrate(uint64_t buckets) {
    View& now = *view_.load(std::memory_order_relaxed);
    if (now.fresh_buckets == nullptr) return;
    const uint64_t from = now.migrated.load(std::memory_order_relaxed);
    const uint64_t to = std::min(now.old_count, from + buckets);
    for (uint64_t i = from; i < to; ++i) {
        __builtin_prefetch(now.old_buckets + i + 8);
        move_bucket(now, i);
    }
    // The old buckets stay as they were for readers that are behind; their memory goes back as the sweep passes. Such a
    // reader then finds nothing, and looks again because the count of moves changed.
    const uint64_t passed = to * sizeof(Bucket) / kHugePageBytes * kHugePageBytes;
    if (passed > released_) {
        moved();
        memory_.release(released_, passed);
        released_ = passed;
    }
    if (to == now.old_count) finish_growth();
}

void Index::move_bucket(View& now, uint64_t old_index) {
    std::vector<uint64_t> crowded;
    for (const Slot& slot : now.old_buckets[old_index].slots) {
        if (!slot.used()) continue;
        const Hashes hashes = hash_.both(slot.key);
        const bool by_first = high_product(hashes.first, now.old_count) == old_index;
        const uint64_t hash = by_first ? hashes.first : hashes.second;
        Slot* place = free_slot(now.fresh_buckets + high_product(hash, now.fresh_count));
        if (place != nullptr) {
            store_slot(place, slot);
        } else {
            // It waits in the overflow, visible, until the displacement that makes room is done.
            put_overflow(slot);
            crowded.push_back(slot.key);
        }
    }
    now.migrated.store(old_index + 1, std::memory_order_release);
    if (crowded.empty()) return;
    moved();
    settle(crowded);
}

void Index::settle(const std::vector<uint64_t>& ids) {
    for (const uint64_t id : ids) {
        const Slot slot = overflow_.at(id);
        const Hashes hashes = hash_.both(id);
        const View& now = view();
        Bucket* first = now.bucket(hashes.first);
        Bucket* second = now.bucket(hashes.second);
        Slot* place = free_slot(first);
        if (place == nullptr) place = free_slot(second);
        if (place != nullptr) {
            store_slot(place, slot);
        } else if (!displace(slot, first, second)) {
            continue;
        }
        moved();
        const std::scoped_lock lock(overflow_mutex_);
        overflow_.erase(id);
        overflow_size_.store(overflow_.size(), std::memory_order_release);
    }
}

void Index::finish_growth() {
    View* before = view_.load(std::memory_order_relaxed);
    auto next = std::make_unique<View>();
    next->old_buckets = before->fresh_buckets;
    next->old_count = before->fresh_count;
    view_.store(next.release(), std::memory_order_release);
    retired_.push_back({std::unique_ptr<View>(before), std::move(memory_), readers_.next_epoch()});
    memory_ = std::move(fresh_memory_);
    fresh_memory_ = VirtualArray();
    released_ = 0;
    if (!overflow_.empty()) settle(overflow_ids());
    reclaim();
}

void Index::reclaim() {
    const uint64_t oldest = readers_.oldest();
    std::erase_if(retired_, [oldest](const Retired& retired) { return retired.epoch < oldest; });
}

}  // namespace minutely
