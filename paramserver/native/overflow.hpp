// Ids that found no place although the index is not full: more than eight share both buckets, by craft or by chance.
//
// Open addressing with linear probing, at most half full. One writer; readers take no lock: a slot is read whole, and
// an id that moves is copied before its old place is overwritten and counted in between, as in the index itself. An
// array that became too small stays for readers who are in it; they double in size, so all of them together take no
// more than the newest.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "bucket.hpp"
#include "hash.hpp"

namespace minutely {

class Overflow {
  public:
    explicit Overflow(uint64_t seed) : seed_(seed) { use(kFewestPlaces); }

    uint64_t size() const { return size_.load(std::memory_order_acquire); }

    // Any thread: unused where the id is not here.
    Slot find(uint64_t id) const {
        const Array& array = *newest_.load(std::memory_order_acquire);
        // No longer than once around, whatever moves meanwhile.
        for (uint64_t i = 0, at = home(id); i <= array.mask; ++i, ++at) {
            const Slot slot = load_slot(&array.slots[at & array.mask]);
            if (!slot.used() || slot.key == id) return slot;
        }
        return Slot{id, kNoRow, 0};
    }

    // Writer only: where the id is, or nullptr. Valid until the next put or erase.
    Slot* locate(uint64_t id) {
        if (size() == 0) return nullptr;
        Slot* slot = place_of(id);
        return slot->used() ? slot : nullptr;
    }

    // Writer only: whether this is a slot of this map.
    bool holds(const Slot* slot) const {
        const Array& array = *arrays_.back();
        return slot >= array.slots.get() && slot <= array.slots.get() + array.mask;
    }

    // Writer only: for an id that is not here.
    void put(const Slot& slot) {
        if (2 * (size() + 1) > arrays_.back()->mask + 1) use(2 * (arrays_.back()->mask + 1));
        store_slot(place_of(slot.key), slot);
        size_.store(size() + 1, std::memory_order_release);
    }

    // Writer only: those behind move up. Calls moved() for each, before its old place is overwritten.
    template <class Moved> void erase(Slot* slot, Moved moved) {
        const Array& array = *arrays_.back();
        uint64_t hole = static_cast<uint64_t>(slot - array.slots.get());
        for (uint64_t at = (hole + 1) & array.mask; array.slots[at].used(); at = (at + 1) & array.mask) {
            const Slot& next = array.slots[at];
            if (((at - home(next.key)) & array.mask) < ((at - hole) & array.mask)) continue;
            store_slot(&array.slots[hole], next);
            moved();
            hole = at;
        }
        store_slot(&array.slots[hole], Slot{0, kNoRow, 0});
        size_.store(size() - 1, std::memory_order_release);
    }

    // Writer only.
    std::vector<uint64_t> ids() const {
        std::vector<uint64_t> ids;
        const Array& array = *arrays_.back();
        for (uint64_t at = 0; size() > 0 && at <= array.mask; ++at) {
            if (array.slots[at].used()) ids.push_back(array.slots[at].key);
        }
        return ids;
    }

  private:
    struct Array {
        uint64_t mask;
        std::unique_ptr<Slot[]> slots;
    };
    static constexpr uint64_t kFewestPlaces = 16;

    uint64_t home(uint64_t id) const {
        uint64_t state = id ^ seed_;
        return splitmix64(state);
    }

    // Where the id is, or the free place where it belongs.
    Slot* place_of(uint64_t id) {
        const Array& array = *arrays_.back();
        uint64_t at = home(id) & array.mask;
        while (array.slots[at].used() && array.slots[at].key != id) at = (at + 1) & array.mask;
        return &array.slots[at];
    }

    void use(uint64_t places) {
        const Array* before = arrays_.empty() ? nullptr : arrays_.back().get();
        arrays_.push_back(std::make_unique<Array>(Array{places - 1, std::make_unique<Slot[]>(places)}));
        for (uint64_t at = 0; before != nullptr && at <= before->mask; ++at) {
            if (before->slots[at].used()) *place_of(before->slots[at].key) = before->slots[at];
        }
        newest_.store(arrays_.back().get(), std::memory_order_release);
    }

    uint64_t seed_;
    std::vector<std::unique_ptr<Array>> arrays_;
    std::atomic<const Array*> newest_{nullptr};
    std::atomic<uint64_t> size_{0};
};

}  // namespace minutely
