#include "index.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace minutely {

namespace {

// The index grows by three tenths when three quarters of its slots are used: 16 bytes a slot make 21 to 28 bytes an id.
// Fuller would send more lookups to their second bucket, emptier would cost memory, smaller steps would move ids more
// often (4.3 times each, as it is).
constexpr uint64_t kLoadNumerator = 3, kLoadDenominator = 4;
constexpr uint64_t kGrowthNumerator = 3, kGrowthDenominator = 10;
constexpr uint64_t kSmallestCount = 16;
constexpr uint64_t kMostBuckets = uint64_t{1} << 30;
// Below this many buckets growth is one step and by a factor of two.
constexpr uint64_t kIncrementalCount = 1024;
// It shrinks when less than three tenths of its slots are used, to where half of them are.
constexpr uint64_t kSparseNumerator = 3, kSparseDenominator = 10;
// Ids that prepare() may be asked to make room for although they are there already.
constexpr uint64_t kMostAtOnce = 16384;
// Old buckets moved per inserted id: a growth is over after about half of the inserts that lead to the next one.
constexpr uint64_t kMigratePerInsert = 2;
// Old buckets moved together.
constexpr uint64_t kMoveBlock = 16;
// Breadth-first search looks at no more than this many buckets (five levels of two roots) before it gives up.
constexpr int kLongestSearch = 512;
// An id that finds no place in an index emptier than this shares its buckets with too many others: growing would not
// help.
constexpr uint64_t kCrowdedNumerator = 1, kCrowdedDenominator = 2;

uint64_t buckets_for(uint64_t capacity) {
    const uint64_t slots = capacity * kLoadDenominator / kLoadNumerator + 1;
    return std::max(kSmallestCount, (slots + kSlotsPerBucket - 1) / kSlotsPerBucket);
}

// Without a branch on where: no predictor knows.
Slot* free_slot(Bucket* bucket) {
    unsigned free = 0;
    for (unsigned i = 0; i < kSlotsPerBucket; ++i) free |= static_cast<unsigned>(!bucket->slots[i].used()) << i;
    return free != 0 ? &bucket->slots[__builtin_ctz(free)] : nullptr;
}

Slot* slot_of(Bucket* bucket, uint64_t id) {
    unsigned found = 0;
    for (unsigned i = 0; i < kSlotsPerBucket; ++i) {
        const Slot& slot = bucket->slots[i];
        found |= static_cast<unsigned>((slot.key == id) & slot.used()) << i;
    }
    return found != 0 ? &bucket->slots[__builtin_ctz(found)] : nullptr;
}

}  // namespace

Index::Index(uint64_t seed, uint64_t capacity)
    : hash_(seed), most_buckets_(std::min(kMostBuckets, 2 * buckets_for(capacity + kMostAtOnce))),
      memory_(most_buckets_ * sizeof(Bucket)), smaller_count_(buckets_for(0)), count_(smaller_count_.load()),
      overflow_(hash_.mask) {
    memory_.commit(count_.load() * sizeof(Bucket));
}

void Index::set_shape(uint64_t smaller_count, uint64_t count, uint64_t frontier) {
    shape_.fetch_add(1, std::memory_order_acq_rel);
    smaller_count_.store(smaller_count, std::memory_order_release);
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
        if (has_overflow()) {
            const Slot slot = overflow_.find(id);
            if (slot.used()) return slot;
        }
        // The loads above come before the second look at the count, as in a sequence lock.
        std::atomic_thread_fence(std::memory_order_acquire);
        if (moves() == before) return Slot{id, kNoRow, 0};
    }
}

Slot* Index::locate(uint64_t id, Home home) {
    if (Slot* slot = slot_of(home.first, id)) return slot;
    if (Slot* slot = slot_of(home.second, id)) return slot;
    return overflow_.locate(id);
}

void Index::prepare(uint64_t count) {
    const auto full = [&](const std::atomic<uint64_t>& buckets) {
        const uint64_t slots = buckets.load(std::memory_order_relaxed) * kSlotsPerBucket;
        return (size_ + count) * kLoadDenominator > slots * kLoadNumerator;
    };
    // Ids came after all: what has moved goes back the way it came.
    if (shrinking_ && full(smaller_count_)) shrinking_ = false;
    while (full(count_)) {
        // Only where more ids come at once than a growth makes room for.
        migrate(smaller_count_.load(std::memory_order_relaxed));
        start_growth();
    }
    // After a growth may have begun: its first inserts need the room already.
    due_ += count * kMigratePerInsert;
    if (due_ >= kMoveBlock) {
        migrate(due_);
        due_ = 0;
    }
}

void Index::reserve(uint64_t capacity) {
    const uint64_t count = buckets_for(capacity);
    if (shrinking_ && count > smaller_count_.load(std::memory_order_relaxed)) shrinking_ = false;
    if (count <= count_.load(std::memory_order_relaxed)) return;
    migrate(smaller_count_.load(std::memory_order_relaxed));
    grow_to(count);
}

void Index::insert(const Slot& slot, Home home) {
    place(slot, home);
    ++size_;
}

void Index::erase(Slot* slot) {
    --size_;
    if (overflow_.holds(slot)) {
        overflow_.erase(slot, [this] { moved(); });
    } else {
        store_slot(slot, Slot{0, kNoRow, 0});
    }
}

std::vector<uint64_t> Index::overflow_ids() const {
    std::vector<uint64_t> ids = overflow_.ids();
    std::sort(ids.begin(), ids.end());
    return ids;
}

void Index::place(const Slot& slot, Home home) {
    while (!settle_in(slot, home)) {
        const uint64_t slots = count_.load(std::memory_order_relaxed) * kSlotsPerBucket;
        if (changing() || size_ * kCrowdedDenominator < slots * kCrowdedNumerator) return overflow_.put(slot);
        start_growth();
        if (changing()) return overflow_.put(slot);
        home = this->home(slot.key);
    }
}

bool Index::settle_in(const Slot& slot, Home home) {
    Slot* place = free_slot(home.first);
    if (place == nullptr) place = free_slot(home.second);
    if (place == nullptr) return displace(slot, home);
    store_slot(place, slot);
    return true;
}

bool Index::displace(const Slot& slot, Home home) {
    struct Step {
        Bucket* bucket;
        int16_t parent;
        int8_t slot_in_parent;
        uint64_t key;
    };
    const Buckets now = buckets();
    std::array<Step, kLongestSearch> steps;
    steps[0] = {home.first, -1, 0, 0};
    int count = 1;
    if (home.second != home.first) steps[count++] = {home.second, -1, 0, 0};
    for (int at = 0; at < count && count + kSlotsPerBucket <= kLongestSearch; ++at) {
        const int first_child = count;
        for (int i = 0; i < kSlotsPerBucket; ++i) {
            const uint64_t key = steps[at].bucket->slots[i].key;
            const Hashes hashes = hash_.both(key);
            Bucket* one = now.bucket(hashes.first);
            Bucket* other = one == steps[at].bucket ? now.bucket(hashes.second) : one;
            if (other == steps[at].bucket) continue;
            __builtin_prefetch(other);
            steps[count++] = {other, static_cast<int16_t>(at), static_cast<int8_t>(i), key};
        }
        for (int end = first_child; end < count; ++end) {
            Slot* place = free_slot(steps[end].bucket);
            if (place == nullptr) continue;
            // Walk back from the free slot; a key is copied forward before its own slot is overwritten.
            for (int child = end; steps[child].parent >= 0; child = steps[child].parent) {
                Slot* from = &steps[steps[child].parent].bucket->slots[steps[child].slot_in_parent];
                if (from->key != steps[child].key || !from->used()) {
                    if (child != end) store_slot(place, Slot{0, kNoRow, 0});
                    return false;
                }
                store_slot(place, *from);
                moved();
                place = from;
            }
            store_slot(place, slot);
            return true;
        }
    }
    return false;
}

void Index::start_growth() {
    const uint64_t before = count_.load(std::memory_order_relaxed);
    const uint64_t after =
        before < kIncrementalCount ? before * 2 : before + before * kGrowthNumerator / kGrowthDenominator;
    grow_to(std::max(before + 1, std::min(after, most_buckets_)));
}

void Index::grow_to(uint64_t count) {
    if (count > most_buckets_) {
        throw std::length_error("a table of this width has room for at most " +
                                std::to_string(most_buckets_ * kSlotsPerBucket * kLoadNumerator / kLoadDenominator) +
                                " rows on this machine");
    }
    const uint64_t before = count_.load(std::memory_order_relaxed);
    memory_.commit(count * sizeof(Bucket));
    set_shape(before, count, before);
    if (before < kIncrementalCount) migrate(before);
}

void Index::shrink(uint64_t buckets) {
    const uint64_t count = count_.load(std::memory_order_relaxed);
    if (!changing()) {
        if (size_ * kSparseDenominator >= count * kSlotsPerBucket * kSparseNumerator) return;
        const uint64_t target = std::max(kIncrementalCount, buckets_for(size_ + size_ / 2));
        if (target >= count) return;
        shrinking_ = true;
        set_shape(target, count, 0);
    }
    migrate(buckets);
}

void Index::migrate(uint64_t buckets) {
    const uint64_t smaller_count = smaller_count_.load(std::memory_order_relaxed);
    const uint64_t count = count_.load(std::memory_order_relaxed);
    if (!changing()) return;
    const uint64_t end = shrinking_ ? smaller_count : 0;
    for (uint64_t moved = 0; moved < buckets && frontier_.load(std::memory_order_relaxed) != end;) {
        const uint64_t frontier = frontier_.load(std::memory_order_relaxed);
        if (shrinking_) {
            moved += fold_bucket(frontier);
            continue;
        }
        // The new places of a block must not be its own old ones, which is not so near the start.
        uint64_t low = frontier - std::min(frontier, kMoveBlock);
        if (static_cast<uint64_t>(static_cast<uint128>(low) * count / smaller_count) < frontier) low = frontier - 1;
        move_buckets(low);
        moved += frontier - low;
    }
    if (frontier_.load(std::memory_order_relaxed) == end) finish_change();
}

void Index::finish_change() {
    const uint64_t before = count_.load(std::memory_order_relaxed);
    const uint64_t count = shrinking_ ? smaller_count_.load(std::memory_order_relaxed) : before;
    set_shape(count, count, 0);
    shrinking_ = false;
    // Readers who still look there find it empty, as it is, and look again: the last move was counted before.
    if (count < before) memory_.release(count * sizeof(Bucket), before * sizeof(Bucket));
    if (has_overflow()) settle(overflow_ids());
}

// Moves the ids of the old buckets from `low` to the frontier, which then is `low`. An id in its second bucket goes to
// its first where that has room again, which is anywhere: a lookup that ends in the first bucket costs one miss less.
void Index::move_buckets(uint64_t low) {
    struct Move {
        Slot* from;
        Bucket* to;
    };
    Buckets now = buckets();
    const uint64_t end = now.frontier;
    now.frontier = low;
    std::array<Move, kMoveBlock * kSlotsPerBucket> near, far;
    size_t near_count = 0, far_count = 0;
    for (uint64_t index = low; index < end; ++index) {
        for (Slot& slot : now.data[index].slots) {
            const uint64_t hash = hash_.first(slot.key);
            const bool first = high_product(hash, now.smaller_count) == index;
            Bucket* to = now.bucket(hash);
            near[near_count] = {&slot, to};
            far[far_count] = {&slot, to};
            near_count += slot.used() & first;
            far_count += slot.used() & !first;
        }
    }
    for (size_t i = 0; i < far_count; ++i) __builtin_prefetch(far[i].to);
    // The next block and where it goes: both lie in order, but on pages that the processor has not seen for long.
    const uint64_t next = low - std::min(low, kMoveBlock);
    const uint64_t next_to = static_cast<uint64_t>(static_cast<uint128>(next) * now.count / now.smaller_count);
    for (uint64_t i = 0; i < kMoveBlock; ++i) __builtin_prefetch(now.data + next + i);
    for (uint64_t i = 0; i < kMoveBlock; ++i) __builtin_prefetch(now.data + next_to + i, 1);

    std::array<Slot*, kMoveBlock * kSlotsPerBucket> left;
    size_t left_count = 0;
    std::vector<uint64_t> crowded;
    const auto move = [&](Slot* slot, Slot* place) {
        if (place != nullptr) {
            store_slot(place, *slot);
        } else {
            // It waits in the overflow, visible, until the displacement that makes room is done.
            overflow_.put(*slot);
            crowded.push_back(slot->key);
        }
        left[left_count++] = slot;
    };
    const auto holds = [](const Bucket* bucket, const Slot* slot) {
        return slot >= bucket->slots && slot < bucket->slots + kSlotsPerBucket;
    };
    for (size_t i = 0; i < near_count; ++i) {
        if (!holds(near[i].to, near[i].from)) move(near[i].from, free_slot(near[i].to));
    }
    for (size_t i = 0; i < far_count; ++i) {
        Slot* slot = far[i].from;
        Slot* place = free_slot(far[i].to);
        if (place == nullptr) {
            Bucket* second = now.bucket(hash_.both(slot->key).second);
            if (holds(second, slot)) continue;
            place = free_slot(second);
        }
        move(slot, place);
    }
    frontier_.store(low, std::memory_order_release);
    // From here on a reader that missed looks again, with the new frontier; only then do the old places empty.
    moved();
    for (size_t i = 0; i < left_count; ++i) store_slot(left[i], Slot{0, kNoRow, 0});
    if (!crowded.empty()) settle(crowded);
}

// Moves the ids that belong to bucket `to` of the smaller count there, which then is one more below the frontier;
// returns how many buckets were looked at.
uint64_t Index::fold_bucket(uint64_t to) {
    const Buckets before = buckets();
    Buckets now = before;
    now.frontier = to + 1;
    const auto start_of = [&](uint64_t index) {
        return static_cast<uint64_t>(static_cast<uint128>(index) * before.count / before.smaller_count);
    };
    const uint64_t first = start_of(to);
    const uint64_t last = std::min(start_of(to + 1), before.count - 1);
    for (uint64_t i = 1; i <= kMoveBlock; ++i) __builtin_prefetch(before.data + last + i);
    const auto holds = [](const Bucket* bucket, const Slot* slot) {
        return slot >= bucket->slots && slot < bucket->slots + kSlotsPerBucket;
    };
    std::vector<Slot*> left;
    std::vector<uint64_t> crowded;
    for (uint64_t index = first; index <= last; ++index) {
        for (Slot& slot : before.data[index].slots) {
            if (!slot.used()) continue;
            // Where it stands after this step; by which of its hashes it is here does not matter.
            const Hashes hashes = hash_.both(slot.key);
            Bucket* const homes[] = {now.bucket(hashes.first), now.bucket(hashes.second)};
            if (holds(homes[0], &slot) || holds(homes[1], &slot)) continue;
            Slot* place = free_slot(homes[0]);
            if (place == nullptr) place = free_slot(homes[1]);
            if (place != nullptr) {
                store_slot(place, slot);
            } else {
                // It waits in the overflow, visible, until the displacement that makes room is done.
                overflow_.put(slot);
                crowded.push_back(slot.key);
            }
            left.push_back(&slot);
        }
    }
    frontier_.store(to + 1, std::memory_order_release);
    // From here on a reader that missed looks again, with the new frontier; only then do the old places empty.
    moved();
    for (Slot* slot : left) store_slot(slot, Slot{0, kNoRow, 0});
    if (!crowded.empty()) settle(crowded);
    return last - first + 1;
}

void Index::settle(const std::vector<uint64_t>& ids) {
    for (const uint64_t id : ids) {
        Slot* slot = overflow_.locate(id);
        if (!settle_in(*slot, home(id))) continue;
        moved();
        overflow_.erase(slot, [this] { moved(); });
    }
}

}  // namespace minutely
