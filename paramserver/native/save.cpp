// A table in a file and back. Blocks (file.hpp): 1 head, 2 default row, 3 rows, 4 candidates, 5 expired ids.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "file.hpp"
#include "table.hpp"

namespace minutely {

namespace {

enum BlockKind : uint32_t { kEnd, kHead, kDefaultRow, kRows, kCandidates, kExpired };

struct Head {
    char magic[8];
    uint32_t version;
    uint32_t dim;
    OptimizerKind optimizer;
    RowFormat format;
    uint64_t seed;
    uint64_t rows;
    uint64_t inserted;
    uint64_t admitted;
    uint64_t expired_total;
    uint64_t erased;
    uint64_t rejected_gradients;
    uint64_t rowless_gradients;
    uint64_t sweep_position;
    uint32_t clock_seconds;
    uint32_t unused;
};
static_assert(sizeof(Head) == 104);

constexpr char kMagic[8] = {'m', 'i', 'n', 'u', 't', 'e', 'l', 'y'};
constexpr uint32_t kVersion = 1;
constexpr size_t kRowHeadBytes = sizeof(Slot) + sizeof(Sight);
constexpr size_t kAhead = 32;

template <class T> void write_list(BlockWriter& file, uint32_t kind, const std::vector<T>& items) {
    constexpr size_t kItems = kMostBlockBytes / sizeof(T);
    for (size_t from = 0; from < items.size(); from += kItems) {
        file.block(kind, items.data() + from, std::min(kItems, items.size() - from) * sizeof(T));
    }
}

template <class T> void read_list(const BlockReader& file, std::vector<T>& items) {
    if (file.bytes() % sizeof(T) != 0) file.refuse("a block ends within an item");
    const size_t before = items.size();
    items.resize(before + file.bytes() / sizeof(T));
    std::memcpy(items.data() + before, file.payload(), file.bytes());
}

}  // namespace

// A row in a block: its slot (the row number without meaning but for the changed mark), its sight, its values as in the
// slab.
void Table::save(const std::string& path) {
    const std::scoped_lock lock(writer_);
    Content& content = *content_;
    const RowArea& area = content.slab.area();
    BlockWriter file(path);
    Head head{};
    std::memcpy(head.magic, kMagic, sizeof kMagic);
    head.version = kVersion;
    head.dim = dim();
    head.optimizer = options_.optimizer.kind;
    head.format = options_.format;
    head.seed = seed_;
    head.rows = content.index.size();
    head.inserted = content.inserted;
    head.admitted = content.admitted;
    head.expired_total = content.expired_total;
    head.erased = content.erased;
    head.rejected_gradients = content.rejected_gradients;
    head.rowless_gradients = content.rowless_gradients;
    head.sweep_position = content.sweep_position;
    head.clock_seconds = content.clock_seconds;
    file.block(kHead, &head, sizeof head);

    std::vector<float> values = content.default_values;
    values.push_back(content.default_slot.aux_float());
    file.block(kDefaultRow, values.data(), values.size() * sizeof(float));

    const size_t record = kRowHeadBytes + area.stride_bytes;
    std::vector<std::byte> buffer(kMostBlockBytes / record * record);
    size_t used = 0;
    Slot ring[kAhead];
    size_t head_at = 0, tail = 0;
    const auto write_row = [&](const Slot& slot) {
        std::byte* to = buffer.data() + used;
        const Sight sight = area.sights != nullptr ? area.sights[slot.number()] : Sight{0, 0};
        std::memcpy(to, &slot, sizeof slot);
        std::memcpy(to + sizeof slot, &sight, sizeof sight);
        std::memcpy(to + kRowHeadBytes, area.row(slot.number()), area.stride_bytes);
        used += record;
        if (used == buffer.size()) {
            file.block_beside(kRows, buffer, used);
            used = 0;
        }
    };
    content.index.each([&](const Slot* slot) {
        ring[tail++ % kAhead] = *slot;
        for (size_t at = 0; at < area.stride_bytes; at += 64) __builtin_prefetch(area.row(slot->number()) + at);
        if (area.sights != nullptr) __builtin_prefetch(area.sights + slot->number());
        if (tail - head_at == kAhead) write_row(ring[head_at++ % kAhead]);
    });
    while (head_at != tail) write_row(ring[head_at++ % kAhead]);
    if (used > 0) file.block(kRows, buffer.data(), used);
    write_list(file, kCandidates, content.candidates.list());
    write_list(file, kExpired, content.expired);
    file.finish();
}

void Table::load(const std::string& path) {
    BlockReader file(path);
    if (file.next() != kHead || file.bytes() != sizeof(Head)) file.refuse("it does not start as a saved table does");
    Head head;
    std::memcpy(&head, file.payload(), sizeof head);
    if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0) file.refuse("it is no saved table");
    if (head.version != kVersion)
        file.refuse("its version is " + std::to_string(head.version) + ", known is " + std::to_string(kVersion));
    if (head.dim != dim())
        file.refuse("its dim is " + std::to_string(head.dim) + ", this table's is " + std::to_string(dim()));
    if (head.optimizer != options_.optimizer.kind) file.refuse("it was saved with another optimizer");
    if (head.format != options_.format) file.refuse("it was saved with another row format");
    if (head.seed != seed_) file.refuse("it was saved with another seed or name");

    auto loaded = std::make_unique<Content>(options_, seed_, head.rows);
    Content& content = *loaded;
    content.inserted = head.inserted;
    content.admitted = head.admitted;
    content.expired_total = head.expired_total;
    content.erased = head.erased;
    content.rejected_gradients = head.rejected_gradients;
    content.rowless_gradients = head.rowless_gradients;
    content.sweep_position = head.sweep_position;
    content.clock_seconds = head.clock_seconds;
    const RowArea& area = content.slab.area();
    const size_t record = kRowHeadBytes + area.stride_bytes;
    std::vector<Candidates::Record> candidates;
    while (const uint32_t kind = file.next()) {
        if (kind == kDefaultRow) {
            const size_t bytes = content.default_values.size() * sizeof(float);
            if (file.bytes() != bytes + sizeof(float)) file.refuse("its default row has another size");
            std::memcpy(content.default_values.data(), file.payload(), bytes);
            std::memcpy(&content.default_slot.aux, file.payload() + bytes, sizeof(float));
        } else if (kind == kRows) {
            if (file.bytes() % record != 0) file.refuse("a block ends within a row");
            const size_t count = file.bytes() / record;
            const auto slot_at = [&](size_t i) {
                Slot slot;
                std::memcpy(&slot, file.payload() + i * record, sizeof slot);
                return slot;
            };
            content.index.prepare(count);
            const auto id_of = [&](size_t i) { return slot_at(i).key; };
            content.index.each_home(count, id_of, [&](size_t i, Home home) {
                Slot slot = slot_at(i);
                const uint32_t changed = slot.row & kChanged;
                const uint32_t row = content.slab.allocate();
                slot.row = row | changed;
                const std::byte* from = file.payload() + i * record + sizeof slot;
                if (area.sights != nullptr) std::memcpy(area.sights + row, from, sizeof(Sight));
                std::memcpy(area.row(row), from + sizeof(Sight), area.stride_bytes);
                content.index.insert(slot, home);
                if (changed != 0) content.changed.push_back(static_cast<int64_t>(slot.key));
            });
        } else if (kind == kCandidates) {
            read_list(file, candidates);
        } else if (kind == kExpired) {
            read_list(file, content.expired);
        } else {
            file.refuse("it has a block of unknown kind " + std::to_string(kind));
        }
    }
    if (content.index.size() != head.rows) {
        file.refuse("it has " + std::to_string(content.index.size()) + " rows instead of " + std::to_string(head.rows));
    }
    content.candidates.fill(candidates);

    const std::scoped_lock lock(writer_);
    const Readers::Exclusive alone(readers_);
    content_.swap(loaded);
}

}  // namespace minutely
