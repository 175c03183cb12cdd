// The operations of training; each is alone in the table for the length of its batch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "table.hpp"

namespace minutely {

namespace {

// Both buckets of this many ids stay in the second-level cache from the search to the insert.
constexpr size_t kTouchChunk = 2048;
// One look at every row lists this share of them for eviction.
constexpr uint64_t kListedShare = 16;
constexpr size_t kRejectedIdsKept = 16;
// Erased and expired ids wait for the next seal; a table that is never sealed must not collect them for ever.
constexpr size_t kMostUnsealed = size_t{1} << 26;

}  // namespace

void Table::lookup_or_insert(const int64_t* ids, size_t count, int64_t now_ms, float* out) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    const uint32_t now = advance(now_ms);
    scratch_.resize(std::max(scratch_.size(), 2 * kTouchChunk));
    for (size_t from = 0; from < count; from += kTouchChunk) {
        const size_t n = std::min(kTouchChunk, count - from);
        Found found{scratch_.data(), 0, scratch_.data() + kTouchChunk, 0, nullptr, 0};
        float* to = out + from * dim();
        kernels_.touch(content_->index.buckets(), content_->slab.area(), {ids + from, nullptr, n}, now, to, found);
        for (size_t k = 0; k < found.changed_count; ++k) content_->changed.push_back(ids[from + found.changed[k]]);
        insert_missing(ids + from, found, now, to);
        evict();
    }
    trim_changed();
}

void Table::insert_missing(const int64_t* ids, const Found& found, uint32_t now, float* out) {
    if (found.missing_count == 0) return;
    Content& content = *content_;
    Index& index = content.index;
    index.prepare(found.missing_count);
    const auto id_of = [&](size_t k) { return ids[found.missing[k]]; };
    index.each_home(found.missing_count, id_of, [&](size_t k, Home home) {
        const uint64_t id = static_cast<uint64_t>(id_of(k));
        float* to = out + static_cast<size_t>(found.missing[k]) * dim();
        // It may be there after all: twice in this batch, id 0, or in the overflow.
        if (Slot* slot = index.locate(id, home)) return touch_slot(slot, now, to);
        if (options_.admit_after > 1 && !content.candidates.admit(id, now, options_.admit_after)) {
            std::memcpy(to, content.default_values.data(), dim() * sizeof(float));
            return;
        }
        const Slot slot = new_row(id, now, options_.admit_after);
        index.insert(slot, home);
        ++content.admitted;
        std::memcpy(to, content.slab.area().row(slot.number()), dim() * sizeof(float));
    });
}

void Table::touch_slot(Slot* slot, uint32_t now, float* out) {
    const RowArea& area = content_->slab.area();
    Sight& sight = area.sights[slot->number()];
    sight.last_seen_seconds = std::max(sight.last_seen_seconds, now);
    sight.count += sight.count != UINT32_MAX;
    mark_changed(slot);
    std::memcpy(out, area.row(slot->number()), dim() * sizeof(float));
}

void Table::apply(const int64_t* ids, const float* gradients, size_t count, int64_t now_ms) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    const uint32_t now = advance(now_ms);
    duplicates_.split(kernels_, content_->index.hash(), dim(), ids, count, gradients);
    if (duplicates_.any_suspects()) {
        const auto& singles = duplicates_.singles();
        apply_unique({ids, singles.data(), singles.size()}, gradients, now);
        const auto& summed = duplicates_.summed_ids();
        apply_unique({summed.data(), nullptr, summed.size()}, duplicates_.sums().data(), now);
        for (const int64_t id : duplicates_.rejected()) reject(id);
    } else {
        apply_unique({ids, nullptr, count}, gradients, now);
    }
    trim_changed();
}

void Table::apply_default_row(const float* gradient) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    Content& content = *content_;
    if (!kernels_.step(options_.optimizer, dim(), content.default_values.data(), &content.default_slot, gradient)) {
        ++content.rejected_gradients;
    }
}

void Table::apply_unique(const Batch& batch, const float* gradients, uint32_t now) {
    const size_t n = batch.count;
    scratch_.resize(std::max(scratch_.size(), 3 * n));
    uint32_t* lists = scratch_.data();
    Found found{lists, 0, lists + n, 0, lists + 2 * n, 0};
    kernels_.apply(content_->index.buckets(), content_->slab.area(), batch, options_.optimizer, now, gradients, found);
    for (size_t k = 0; k < found.changed_count; ++k) content_->changed.push_back(batch.ids[found.changed[k]]);
    for (size_t k = 0; k < found.rejected_count; ++k) reject(batch.ids[found.rejected[k]]);
    apply_missing(batch.ids, found, gradients, now);
}

void Table::apply_missing(const int64_t* ids, const Found& found, const float* gradients, uint32_t now) {
    Content& content = *content_;
    const RowArea& area = content.slab.area();
    for (size_t k = 0; k < found.missing_count; ++k) {
        const size_t at = found.missing[k];
        const float* gradient = gradients + at * dim();
        if (Slot* slot = content.index.locate(static_cast<uint64_t>(ids[at]))) {
            auto* row = reinterpret_cast<float*>(area.row(slot->number()));
            if (!kernels_.step(options_.optimizer, dim(), row, slot, gradient)) {
                reject(ids[at]);
                continue;
            }
            if ((slot->row & kChanged) == 0) {
                Sight& sight = area.sights[slot->number()];
                sight.last_seen_seconds = std::max(sight.last_seen_seconds, now);
            }
            mark_changed(slot);
            continue;
        }
        ++content.rowless_gradients;
        if (!std::isfinite(std::inner_product(gradient, gradient + dim(), gradient, 0.0f))) reject(ids[at]);
    }
}

void Table::reject(int64_t id) {
    Content& content = *content_;
    ++content.rejected_gradients;
    auto& kept = content.rejected_ids;
    if (kept.size() == kRejectedIdsKept) kept.erase(kept.begin());
    kept.push_back(id);
}

void Table::evict() {
    Content& content = *content_;
    const uint64_t most = options_.max_rows != 0 ? options_.max_rows : content.slab.limit() - kTouchChunk;
    // What left the table without being taken from the list must not fill it.
    if (content.unused.size() > content.index.size()) content.unused.clear();
    const RowArea& area = content.slab.area();
    while (content.index.size() > most) {
        if (content.unused.empty()) {
            const uint64_t excess = content.index.size() - most;
            content.unused.list(std::max(excess, content.index.size() / kListedShare), [&](auto take) {
                content.index.each([&](const Slot* slot) {
                    take({area.sights[slot->number()].last_seen_seconds, static_cast<int64_t>(slot->key)});
                });
            });
        }
        const auto [last_seen, id] = content.unused.take();
        Slot* slot = content.index.locate(static_cast<uint64_t>(id));
        if (slot == nullptr || area.sights[slot->number()].last_seen_seconds != last_seen) continue;
        remove(slot, true);
        ++content.evicted;
    }
}

uint64_t Table::expire(int64_t now_ms, uint64_t budget) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    Content& content = *content_;
    const uint32_t now = advance(now_ms);
#if defined(__GLIBC__)
    // The last seal's lists are the caller's until it has written them; by now they are gone, and the allocator keeps
    // their memory: after a million rows came and went, 97 MiB were resident where 71 are with this. It takes some 50
    // ms, once after a seal that named 65,536 ids or more.
    if (std::exchange(content.many_left, false)) malloc_trim(0);
#endif
    if (options_.expire_after_seconds == 0 || now < options_.expire_after_seconds) return 0;
    if (content.expired.size() >= kMostUnsealed) {
        throw std::runtime_error("table \"" + options_.name + "\" holds " + std::to_string(content.expired.size()) +
                                 " expired ids that no seal() has taken; seal before expiring more");
    }
    const uint32_t until = now - options_.expire_after_seconds;
    const RowArea& area = content.slab.area();
    uint64_t expired = 0;
    const auto visit = [&](Slot* slot) {
        if (area.sights[slot->number()].last_seen_seconds > until) return;
        remove(slot, true);
        ++expired;
    };
    const uint64_t buckets = std::max<uint64_t>(1, budget / kSlotsPerBucket);
    // Where no row can be due, to look at them all would take longer than a minute of training.
    content.sweep_position = content.no_row_before_seconds > until
                                 ? content.index.skip(content.sweep_position, buckets)
                                 : content.index.sweep(content.sweep_position, buckets, visit);
    content.expired_total += expired;
    content.candidates.expire(until, budget);
    tidy(buckets, true);
    trim_changed();
    return expired;
}

}  // namespace minutely
