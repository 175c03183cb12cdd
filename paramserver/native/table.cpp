#include "table.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "initializer.hpp"

namespace minutely {

namespace {

// A reader is counted inside for at most this many ids, so a writer never waits long for one.
constexpr size_t kReadChunk = 8192;
// Rows taken out of use are gathered over this many ids before they are offered for reuse.
constexpr size_t kWriteChunk = 4096;

}  // namespace

Table::Content::Content(const Options& options, uint64_t seed, size_t memory_bytes)
    : slab(options, memory_bytes), index(seed, slab.limit()), candidates(seed + 1, options.candidates),
      default_values(options.dim + options.optimizer.row_state(options.dim), 0.0f) {
    if (options.optimizer.kind == OptimizerKind::kRowAdagrad)
        default_slot.set_aux(options.optimizer.initial_accumulator);
    if (options.optimizer.kind == OptimizerKind::kAdagrad) {
        std::fill(default_values.begin() + options.dim, default_values.end(), options.optimizer.initial_accumulator);
    }
}

Table::Table(const Options& options, const Kernels& kernels, bool beside_readers, size_t memory_bytes)
    : options_(options), kernels_(kernels), seed_(table_seed(options.seed, options.name)),
      beside_readers_(beside_readers),
      content_(std::make_unique<Content>(options, hash_seed(seed_, options.secret), memory_bytes)) {}

void Table::lookup(const int64_t* ids, size_t count, float* out) {
    for (size_t at = 0; at < count; at += kReadChunk) {
        lookup_chunk(ids + at, std::min(kReadChunk, count - at), out + at * dim());
    }
}

void Table::lookup_chunk(const int64_t* ids, size_t count, float* out) {
    uint32_t missing[kReadChunk];
    Found found{missing, 0, nullptr, 0, nullptr, 0};
    const Readers::Guard guard(readers_);
    const Content& content = *content_;
    const RowArea& area = content.slab.area();
    const uint64_t moves = content.index.moves();
    kernels_.lookup(content.index.buckets(), area, {ids, nullptr, count}, out, found);
    std::atomic_thread_fence(std::memory_order_acquire);
    // What was not found while nothing moved is not there; otherwise it is looked up again, one by one.
    // The overflow before the count: what leaves it is counted first.
    const bool crowded = content.index.has_overflow();
    const bool doubtful = crowded || content.index.moves() != moves;
    for (size_t k = 0; k < found.missing_count; ++k) {
        const uint64_t id = static_cast<uint64_t>(ids[missing[k]]);
        float* to = out + static_cast<size_t>(missing[k]) * dim();
        // The kernels match id 0 with empty slots.
        if (doubtful || id == 0) {
            const Slot slot = content.index.find(id);
            if (slot.used()) {
                kernels_.decode(area, slot, to);
                continue;
            }
        }
        std::memcpy(to, content.default_values.data(), dim() * sizeof(float));
    }
}

void Table::contains(const int64_t* ids, size_t count, bool* out) {
    for (size_t from = 0; from < count; from += kReadChunk) {
        const Readers::Guard guard(readers_);
        const Index& index = content_->index;
        const auto id_of = [&](size_t i) { return ids[from + i]; };
        // Only for the prefetch: beside a writer a reader looks for itself.
        index.each_home(std::min(kReadChunk, count - from), id_of,
                        [&](size_t i, Home) { out[from + i] = index.find(static_cast<uint64_t>(id_of(i))).used(); });
    }
}

void Table::upsert(const int64_t* ids, const float* embeddings, size_t count) {
    const std::scoped_lock lock(writer_);
    Index& index = content_->index;
    for (size_t from = 0; from < count; from += kWriteChunk) {
        std::optional<Readers::Exclusive> alone;
        if (!beside_readers_) alone.emplace(readers_);
        const size_t chunk = std::min(kWriteChunk, count - from);
        index.prepare(chunk);
        const auto id_of = [&](size_t i) { return ids[from + i]; };
        index.each_home(chunk, id_of, [&](size_t i, Home home) {
            upsert_one(static_cast<uint64_t>(id_of(i)), home, embeddings + (from + i) * dim());
        });
        content_->slab.reclaim(readers_);
    }
    trim_changed();
}

void Table::upsert_one(uint64_t id, Home home, const float* embedding) {
    Content& content = *content_;
    Slot* place = content.index.locate(id, home);
    if (place == nullptr) {
        Slot slot = new_row(id, content.clock_seconds, 0);
        kernels_.encode(content.slab.area(), &slot, embedding);
        content.index.insert(slot, home);
        return;
    }
    // The new values go to a new row and the slot is then turned to it, so a reader has the old row or the new one,
    // whole.
    Slot slot = *place;
    const uint32_t before = slot.number();
    const uint32_t row = content.slab.allocate();
    slot.row = row | (slot.row & kChanged);
    const RowArea& area = content.slab.area();
    if (tracks()) {
        area.sights[row] = area.sights[before];
        std::memcpy(area.row(row), area.row(before), area.stride_bytes);
        mark_changed(&slot);
    }
    kernels_.encode(area, &slot, embedding);
    content.index.replace(place, slot);
    content.slab.retire(before);
}

uint64_t Table::erase(const int64_t* ids, size_t count) {
    const std::scoped_lock lock(writer_);
    Index& index = content_->index;
    uint64_t erased = 0;
    for (size_t from = 0; from < count; from += kWriteChunk) {
        std::optional<Readers::Exclusive> alone;
        if (!beside_readers_) alone.emplace(readers_);
        const auto id_of = [&](size_t i) { return ids[from + i]; };
        index.each_home(std::min(kWriteChunk, count - from), id_of, [&](size_t i, Home home) {
            Slot* slot = index.locate(static_cast<uint64_t>(id_of(i)), home);
            if (slot == nullptr) return;
            remove(slot, false);
            ++erased;
        });
        tidy(kWriteChunk, false);
        content_->slab.reclaim(readers_);
    }
    content_->erased += erased;
    return erased;
}

void Table::remove(Slot* slot, bool alone) {
    const uint32_t row = slot->number();
    if (tracks()) content_->expired.push_back(static_cast<int64_t>(slot->key));
    content_->index.erase(slot);
    alone ? content_->slab.free(row) : content_->slab.retire(row);
}

void Table::tidy(uint64_t buckets, bool alone) {
    Content& content = *content_;
    if (content.slab.sparse()) {
        const auto visit = [&](Slot* slot) { move_forward(slot, alone); };
        content.tidy_position = content.index.sweep(content.tidy_position, buckets, visit);
    }
    content.index.shrink(buckets);
}

void Table::move_forward(Slot* place, bool alone) {
    Slab& slab = content_->slab;
    const uint32_t before = place->number();
    if (!slab.far(before)) return;
    Slot slot = *place;
    const uint32_t row = slab.allocate();
    slot.row = row | (slot.row & kChanged);
    const RowArea& area = slab.area();
    if (tracks()) area.sights[row] = area.sights[before];
    std::memcpy(area.row(row), area.row(before), area.stride_bytes);
    content_->index.replace(place, slot);
    alone ? slab.free(before) : slab.retire(before);
}

Slot Table::new_row(uint64_t id, uint32_t now, uint32_t count) {
    Content& content = *content_;
    const RowArea& area = content.slab.area();
    Slot slot{id, content.slab.allocate(), 0};
    ++content.inserted;
    if (!tracks()) return slot;
    const Optimizer& with = options_.optimizer;
    auto* values = reinterpret_cast<float*>(area.row(slot.row));
    initialize_row(options_.initializer, seed_, id, dim(), values);
    const float state = with.kind == OptimizerKind::kAdagrad ? with.initial_accumulator : 0.0f;
    std::fill_n(values + dim(), with.row_state(dim()), state);
    if (with.kind == OptimizerKind::kRowAdagrad) slot.set_aux(with.initial_accumulator);
    area.sights[slot.row] = {now, count};
    content.no_row_before_seconds = std::min(content.no_row_before_seconds, now);
    content.unused.add(static_cast<int64_t>(id), now);
    mark_changed(&slot);
    return slot;
}

void Table::mark_changed(Slot* slot) {
    if ((slot->row & kChanged) != 0) return;
    slot->row |= kChanged;
    content_->changed.push_back(static_cast<int64_t>(slot->key));
}

uint32_t Table::advance(int64_t now_ms) {
    const auto now = static_cast<uint32_t>(now_ms / 1000);
    content_->clock_seconds = std::max(content_->clock_seconds, now);
    return now;
}

uint64_t Table::size() {
    const std::scoped_lock lock(writer_);
    return content_->index.size();
}

Stats Table::stats() {
    const std::scoped_lock lock(writer_);
    const Content& content = *content_;
    return {content.index.size(),
            content.inserted,
            content.admitted,
            content.expired_total,
            content.evicted,
            content.erased,
            content.rejected_gradients,
            content.rowless_gradients,
            content.candidates.size(),
            content.candidates.dropped(),
            content.index.overflow_size(),
            content.index.bytes(),
            content.slab.bytes(),
            content.rejected_ids};
}

}  // namespace minutely
