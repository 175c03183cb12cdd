// The table: id -> row, batched. One writer at a time (a mutex), readers beside it.
//
// lookup and contains run beside upsert and erase; what changes rows in place (lookup_or_insert, apply, expire,
// restore) waits for the readers inside and keeps new ones out for the length of one batch.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "candidates.hpp"
#include "duplicates.hpp"
#include "index.hpp"
#include "kernels.hpp"
#include "longest_unused.hpp"
#include "options.hpp"
#include "readers.hpp"
#include "slab.hpp"

namespace minutely {

struct Rows {
    std::vector<int64_t> ids;
    std::vector<float> embeddings;  // [n, dim]
    std::vector<float> state;       // [n, state_dim]
    std::vector<uint32_t> last_seen_seconds;
    std::vector<uint32_t> counts;
    std::vector<int64_t> expired;
};

// The same, borrowed from a caller.
struct RowsView {
    size_t count;
    const int64_t* ids;
    const float* embeddings;
    const float* state;
    const uint32_t* last_seen_seconds;
    const uint32_t* counts;
    size_t expired_count;
    const int64_t* expired;
};

struct Stats {
    uint64_t live = 0;
    uint64_t inserted = 0;
    uint64_t admitted = 0;
    uint64_t expired = 0;
    uint64_t evicted = 0;
    uint64_t erased = 0;
    uint64_t rejected_gradients = 0;
    uint64_t rowless_gradients = 0;
    uint64_t candidates = 0;
    uint64_t candidates_dropped = 0;
    uint64_t overflow = 0;
    uint64_t index_bytes = 0;
    uint64_t row_bytes = 0;
    std::vector<int64_t> rejected_ids;
};

class Table {
  public:
    // beside_readers: whether upsert and erase may run beside readers, who then rely on slots being read whole.
    // memory_bytes: what rows and index may take together; no more than that is ever reserved.
    Table(const Options& options, const Kernels& kernels, bool beside_readers = slots_are_atomic(),
          size_t memory_bytes = machine_bytes());

    const Options& options() const { return options_; }
    uint32_t dim() const { return options_.dim; }
    uint32_t state_dim() const {
        return options_.format == RowFormat::kTrain ? options_.optimizer.state_dim(dim()) : 0;
    }
    const char* kernels_name() const { return kernels_.name; }

    // table.cpp
    void lookup(const int64_t* ids, size_t count, float* out);
    void contains(const int64_t* ids, size_t count, bool* out);
    void upsert(const int64_t* ids, const float* embeddings, size_t count);
    uint64_t erase(const int64_t* ids, size_t count);
    uint64_t size();
    Stats stats();

    // train.cpp
    void lookup_or_insert(const int64_t* ids, size_t count, int64_t now_ms, float* out);
    void apply(const int64_t* ids, const float* gradients, size_t count, int64_t now_ms);
    // One step of the optimizer for what ids without a row read as.
    void apply_default_row(const float* gradient);
    uint64_t expire(int64_t now_ms, uint64_t budget);

    // rows.cpp
    Rows seal();
    // The same, after what `rows` has already.
    void seal(Rows& rows);
    // How many rows the next seal may have at most.
    size_t unsealed();
    Rows export_rows();
    // Of every row, ascending.
    std::vector<int64_t> ids();
    void restore(const RowsView& rows);
    void reserve(uint64_t rows);
    void default_row(float* embedding, float* state);
    void set_default_row(const float* embedding, const float* state);

  private:
    // Readers reach it through the table, and only inside a Readers::Guard.
    struct Content {
        Content(const Options& options, uint64_t seed, size_t memory_bytes);
        Slab slab;
        Index index;
        Candidates candidates;
        std::vector<float> default_values;  // embedding, then the optimizer's state
        Slot default_slot{};
        // Ids of rows that were marked, some of them gone or twice. No vector: it would stop a batch to copy itself.
        std::deque<int64_t> changed;
        std::vector<int64_t> expired;
        uint64_t sweep_position = 0;
        uint64_t tidy_position = 0;
        LongestUnused unused;
        bool many_left = false;                       // so the heap may hold memory that was theirs
        uint32_t clock_seconds = 0;                   // the newest event time seen
        uint32_t no_row_before_seconds = UINT32_MAX;  // no row was ever last seen before it
        uint64_t inserted = 0;
        uint64_t admitted = 0;
        uint64_t expired_total = 0;
        uint64_t evicted = 0;
        uint64_t erased = 0;
        uint64_t rejected_gradients = 0;
        uint64_t rowless_gradients = 0;
        std::vector<int64_t> rejected_ids;  // the last few
    };
    // Ids and their slots, valid until the next insert.
    struct Placed {
        std::vector<int64_t> ids;
        std::vector<Slot*> places;
    };

    bool tracks() const { return options_.format == RowFormat::kTrain; }
    uint32_t advance(int64_t now_ms);
    void lookup_chunk(const int64_t* ids, size_t count, float* out);
    void upsert_one(uint64_t id, Home home, const float* embedding);
    void insert_missing(const int64_t* ids, const Found& found, uint32_t now, float* out);
    void touch_slot(Slot* slot, uint32_t now, float* out);
    Slot new_row(uint64_t id, uint32_t now, uint32_t count);
    void apply_unique(const Batch& batch, const float* gradients, uint32_t now);
    void apply_missing(const int64_t* ids, const Found& found, const float* gradients, uint32_t now);
    void reject(int64_t id);
    void mark_changed(Slot* slot);
    void trim_changed();
    Placed placed(std::vector<int64_t> ids, bool changed);
    // The rows changed since the last seal, ascending.
    Placed changed();
    std::vector<int64_t> all_ids();
    // Takes the row out of the table; its memory is reused at once where no reader is inside.
    void remove(Slot* slot, bool alone);
    // Some of the way to less memory, where rows have gone: rows move to the front and the index shrinks.
    void tidy(uint64_t buckets, bool alone);
    void move_forward(Slot* place, bool alone);
    // Removes the longest unused rows beyond what the table may hold.
    void evict();
    void prefetch_row(uint32_t row) const;
    void restore_one(const RowsView& rows, size_t i, Home home);
    // Copies rows after those that are there, and calls then(place, slot) for each.
    template <class Then> void gather(Rows& rows, Placed from, Then then);

    Options options_;
    const Kernels& kernels_;
    uint64_t seed_;
    bool beside_readers_;
    Readers readers_;
    std::mutex writer_;
    std::unique_ptr<Content> content_;
    Duplicates duplicates_;
    std::vector<uint32_t> scratch_;
};

}  // namespace minutely
