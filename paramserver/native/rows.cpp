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
    const std::vector<int64_t> ids = changed().ids;
    content.changed.assign(ids.begin(), ids.end());
}

// Of `ids`, which are sorted, those that have a row, or a changed one, and where.
Table::Placed Table::placed(std::vector<int64_t> ids, bool changed) {
    Placed found{std::move(ids), {}};
    Index& index = content_->index;
    found.places.reserve(found.ids.size());
    const auto id_of = [&](size_t i) { return static_cast<uint64_t>(found.ids[i]); };
    index.each_home(found.ids.size(), id_of, [&](size_t i, Home home) {
        Slot* place = index.locate(id_of(i), home);
        if (place == nullptr || (changed && (place->row & kChanged) == 0)) return;
        // Never past i, so what is still to come stays.
        found.ids[found.places.size()] = found.ids[i];
        found.places.push_back(place);
    });
    found.ids.resize(found.places.size());
    return found;
}

Table::Placed Table::changed() {
    std::vector<int64_t> ids(content_->changed.begin(), content_->changed.end());
    sort_unique(ids);
    return placed(std::move(ids), true);
}

template <class Then> void Table::gather(Rows& rows, Placed from, Then then) {
    const RowArea& area = content_->slab.area();
    const size_t count = from.ids.size();
    const uint32_t row_state = tracks() ? options_.optimizer.row_state(dim()) : 0;
    const size_t before = rows.ids.size();
    rows.ids.insert(rows.ids.end(), from.ids.begin(), from.ids.end());
    rows.embeddings.resize(rows.embeddings.size() + count * dim());
    rows.state.resize(rows.state.size() + count * state_dim());
    rows.last_seen_seconds.resize(before + count);
    rows.counts.resize(before + count);
    float* embedding = rows.embeddings.data() + rows.embeddings.size() - count * dim();
    float* state = rows.state.data() + rows.state.size() - count * state_dim();
    for (size_t i = 0; i < count; ++i) {
        if (i + 2 * kRowsAhead < count) __builtin_prefetch(from.places[i + 2 * kRowsAhead], 1);
        if (i + kRowsAhead < count) prefetch_row(from.places[i + kRowsAhead]->number());
        const Slot slot = *from.places[i];
        then(from.places[i], slot);
        kernels_.decode(area, slot, embedding);
        embedding += dim();
        if (!tracks()) continue;
        const auto* values = reinterpret_cast<const float*>(area.row(slot.number()));
        std::copy_n(values + dim(), row_state, state);
        if (options_.optimizer.slot_state()) state[row_state] = slot.aux_float();
        state += state_dim();
        rows.last_seen_seconds[before + i] = area.sights[slot.number()].last_seen_seconds;
        rows.counts[before + i] = area.sights[slot.number()].count;
    }
}

Rows Table::seal() {
    Rows rows;
    seal(rows);
    return rows;
}

size_t Table::unsealed() {
    const std::scoped_lock lock(writer_);
    return content_->changed.size();
}

void Table::seal(Rows& rows) {
    const std::scoped_lock lock(writer_);
    Content& content = *content_;
    std::vector<int64_t> expired = content.expired;
    sort_unique(expired);
    rows.expired.insert(rows.expired.end(), expired.begin(), expired.end());
    // Once there is memory for all of it nothing fails, so each mark goes as its row is taken.
    gather(rows, changed(), [](Slot* place, Slot slot) {
        slot.row = slot.number();
        store_slot(place, slot);
    });
    // Not `= {}`, which keeps a vector's memory.
    std::exchange(content.changed, {});
    std::exchange(content.expired, {});
    content.many_left |= expired.size() >= kManyLeft;
}

Rows Table::export_rows() {
    const std::scoped_lock lock(writer_);
    Rows rows;
    gather(rows, placed(all_ids(), false), [](Slot*, Slot) {});
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
        ++content.erased;
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
    if (tracks()) __builtin_prefetch(area.sights + row, 1);
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
    content.no_row_before_seconds = std::min(content.no_row_before_seconds, rows.last_seen_seconds[i]);
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
