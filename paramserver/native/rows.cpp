// Whole rows out of the table and into it: seals, exports and recovery.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "table.hpp"

namespace minutely {

namespace {

constexpr size_t kChunk = 4096;
// Rows on their way to the cache while the ones before are written.
constexpr size_t kRowsAhead = 8;
// Lists of so many ids take memory that is worth giving back.
constexpr size_t kManyLeft = size_t{1} << 16;
constexpr size_t kSpareChanged = size_t{1} << 16;

void sort_unique(std::vector<int64_t>& ids) {
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

// An id is listed when its row is first marked, so ids that left and came back are listed again and again: between
// seals the list is kept at most about twice as long as the table.
void Table::trim_changed() {
    Content& content = *content_;
    if (content.changed.size() <= 2 * content.index.size() + kSpareChanged) return;
    const std::vector<int64_t> ids = changed_ids();
    content.changed.assign(ids.begin(), ids.end());
}

std::vector<int64_t> Table::changed_ids() {
    Content& content = *content_;
    std::vector<int64_t> ids(content.changed.begin(), content.changed.end());
    sort_unique(ids);
    std::erase_if(ids, [&](int64_t id) {
        const Slot* slot = content.index.locate(static_cast<uint64_t>(id));
        return slot == nullptr || (slot->row & kChanged) == 0;
    });
    return ids;
}

Rows Table::seal() {
    const std::scoped_lock lock(writer_);
    Content& content = *content_;
    Rows rows;
    rows.ids = changed_ids();
    rows.expired = content.expired;
    sort_unique(rows.expired);
    gather(rows);
    // Everything is in hand; only now is anything forgotten.
    for (const int64_t id : rows.ids) {
        Slot* place = content.index.locate(static_cast<uint64_t>(id));
        Slot slot = *place;
        slot.row = slot.number();
        content.index.replace(place, slot);
    }
    // Not `= {}`, which keeps a vector's memory.
    std::exchange(content.changed, {});
    std::exchange(content.expired, {});
    content.many_left |= rows.expired.size() >= kManyLeft;
    return rows;
}

Rows Table::export_rows() {
    const std::scoped_lock lock(writer_);
    Rows rows;
    rows.ids = all_ids();
    gather(rows);
    return rows;
}

std::vector<int64_t> Table::ids() {
    const std::scoped_lock lock(writer_);
    return all_ids();
}

std::vector<int64_t> Table::all_ids() {
    std::vector<int64_t> ids;
    ids.reserve(content_->index.size());
    content_->index.each([&](const Slot* slot) { ids.push_back(static_cast<int64_t>(slot->key)); });
    std::sort(ids.begin(), ids.end());
    return ids;
}

void Table::gather(Rows& rows) {
    const Content& content = *content_;
    const RowArea& area = content.slab.area();
    const size_t count = rows.ids.size();
    const uint32_t row_state = tracks() ? options_.optimizer.row_state(dim()) : 0;
    rows.embeddings.resize(count * dim());
    rows.state.resize(count * state_dim());
    rows.last_seen_seconds.resize(count);
    rows.counts.resize(count);
    const auto id_of = [&](size_t i) { return rows.ids[i]; };
    content.index.each_home(count, id_of, [&](size_t i, Home home) {
        const Slot slot = *content_->index.locate(static_cast<uint64_t>(id_of(i)), home);
        kernels_.decode(area, slot, rows.embeddings.data() + i * dim());
        if (!tracks()) return;
        const auto* values = reinterpret_cast<const float*>(area.row(slot.number()));
        float* state = rows.state.data() + i * state_dim();
        std::copy_n(values + dim(), row_state, state);
        if (options_.optimizer.slot_state()) state[row_state] = slot.aux_float();
        rows.last_seen_seconds[i] = area.sights[slot.number()].last_seen_seconds;
        rows.counts[i] = area.sights[slot.number()].count;
    });
}

void Table::reserve(uint64_t rows) {
    const std::scoped_lock lock(writer_);
    std::optional<Readers::Exclusive> alone;
    if (!beside_readers_) alone.emplace(readers_);
    // Restore and upsert make room for a chunk whose rows may all be there already.
    content_->index.reserve(rows + std::min<uint64_t>(rows, kChunk));
}

void Table::restore(const RowsView& rows) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    Content& content = *content_;
    content.unused.clear();
    for (size_t i = 0; i < rows.expired_count; ++i) {
        Slot* slot = content.index.locate(static_cast<uint64_t>(rows.expired[i]));
        if (slot == nullptr) continue;
        const uint32_t row = slot->number();
        content.index.erase(slot);
        content.slab.free(row);
    }
    for (size_t from = 0; from < rows.count; from += kChunk) {
        const size_t chunk = std::min(kChunk, rows.count - from);
        content.index.prepare(chunk);
        const auto id_of = [&](size_t i) { return static_cast<uint64_t>(rows.ids[from + i]); };
        const auto put = [&](size_t i) { restore_one(rows, from + i, content.index.home(id_of(i))); };
        content.index.each_home(chunk, id_of, [&](size_t i, Home home) {
            if (const Slot* slot = content.index.locate(id_of(i), home)) prefetch_row(slot->number());
            if (i >= kRowsAhead) put(i - kRowsAhead);
        });
        for (size_t i = chunk - std::min(chunk, kRowsAhead); i < chunk; ++i) put(i);
    }
}

void Table::prefetch_row(uint32_t row) const {
    const RowArea& area = content_->slab.area();
    for (size_t at = 0; at < area.stride_bytes; at += 64) __builtin_prefetch(area.row(row) + at, 1);
    __builtin_prefetch(area.sights + row, 1);
}

void Table::restore_one(const RowsView& rows, size_t i, Home home) {
    Content& content = *content_;
    const RowArea& area = content.slab.area();
    const uint32_t row_state = options_.optimizer.row_state(dim());
    const uint64_t id = static_cast<uint64_t>(rows.ids[i]);
    Slot* place = content.index.locate(id, home);
    Slot slot = place != nullptr ? *place : Slot{id, content.slab.allocate(), 0};
    slot.row = slot.number();
    auto* values = reinterpret_cast<float*>(area.row(slot.row));
    std::copy_n(rows.embeddings + i * dim(), dim(), values);
    const float* state = rows.state + i * state_dim();
    std::copy_n(state, row_state, values + dim());
    if (options_.optimizer.slot_state()) slot.set_aux(state[row_state]);
    area.sights[slot.row] = {rows.last_seen_seconds[i], rows.counts[i]};
    content.clock_seconds = std::max(content.clock_seconds, rows.last_seen_seconds[i]);
    if (place != nullptr) {
        content.index.replace(place, slot);
    } else {
        content.index.insert(slot, home);
        ++content.inserted;
    }
}

void Table::default_row(float* embedding, float* state) {
    const std::scoped_lock lock(writer_);
    const Content& content = *content_;
    std::copy_n(content.default_values.data(), dim(), embedding);
    const uint32_t row_state = state_dim() == 0 ? 0 : options_.optimizer.row_state(dim());
    std::copy_n(content.default_values.data() + dim(), row_state, state);
    if (state_dim() > row_state) state[row_state] = content.default_slot.aux_float();
}

void Table::set_default_row(const float* embedding, const float* state) {
    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    Content& content = *content_;
    std::copy_n(embedding, dim(), content.default_values.data());
    if (state == nullptr) return;
    const uint32_t row_state = options_.optimizer.row_state(dim());
    std::copy_n(state, row_state, content.default_values.data() + dim());
    if (options_.optimizer.slot_state()) content.default_slot.set_aux(state[row_state]);
}

}  // namespace minutely
