// The batched inner loops, one set per instruction set, chosen when the program starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "bucket.hpp"
#include "index.hpp"
#include "options.hpp"

namespace minutely {

// When a row was seen and how often; beside the slab, since a lookup that only reads does not need it.
struct Sight {
    uint32_t last_seen_seconds;
    uint32_t count;
};

struct RowArea {
    std::byte* data;
    size_t stride_bytes;
    uint32_t dim;
    RowFormat format;
    Sight* sights;  // nullptr in a replica

    std::byte* row(uint32_t number) const { return data + number * stride_bytes; }
};

// Positions of a batch that an operation hands back; each list has room for the whole batch.
struct Found {
    uint32_t* missing;  // no slot found: absent, or to be looked up with care
    size_t missing_count = 0;
    uint32_t* changed;  // rows that were unchanged before
    size_t changed_count = 0;
    uint32_t* rejected;  // gradients that are not finite
    size_t rejected_count = 0;
};

// `order`, where given, lists the positions to work on; otherwise all n are.
struct Batch {
    const int64_t* ids;
    const uint32_t* order;
    size_t count;
};

struct Kernels {
    const char* name;
    // Reads rows beside a writer. Rows of missing ids are left unwritten in `out` (f32 [n, dim]).
    void (*lookup)(const Buckets&, const RowArea&, const Batch&, float* out, Found&);
    // Reads rows, counts and stamps them; alone.
    void (*touch)(const Buckets&, const RowArea&, const Batch&, uint32_t now_seconds, float* out, Found&);
    // One optimizer step for each id, which is there once; alone. gradients is f32 [n, dim].
    void (*apply)(const Buckets&, const RowArea&, const Batch&, const Optimizer&, uint32_t now_seconds,
                  const float* gradients, Found&);
    // The same step for a row outside the index. False, and nothing written, where the gradient is not finite.
    bool (*step)(const Optimizer&, uint32_t dim, float* row, Slot*, const float* gradient);
    // Adds a gradient to a sum of gradients. False, and nothing added, where it is not finite.
    bool (*accumulate)(float* sum, const float* gradient, uint32_t dim);
    // One row of the area as float32.
    void (*decode)(const RowArea&, const Slot&, float* out);
    // Writes an embedding in the area's format; the scale of an int8 row goes to slot->aux.
    void (*encode)(const RowArea&, Slot* slot, const float* embedding);
};

// Those that this machine can run, the best one last.
std::vector<const Kernels*> available_kernels();
// The set with this name, or the best one for an empty name; nullptr where the machine cannot run it.
const Kernels* find_kernels(std::string_view name);

}  // namespace minutely
