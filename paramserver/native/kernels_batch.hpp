// The pipeline that keeps tens of cache misses in flight: hash and prefetch buckets, probe and prefetch rows, then work
// on rows.
//
// Chen, Ailamaki, Gibbons, Mowry, "Improving hash join performance through prefetching" (ICDE 2004): the stages of
// different ids are interleaved so that no stage waits for its own miss. The second bucket is only fetched when the
// first has no match.
#pragma once

#include <cfloat>

#include "kernels_step.hpp"

namespace minutely::MINUTELY_ISA {

constexpr size_t kBlock = 16;       // ids a stage takes at a time
constexpr size_t kBucketLead = 16;  // ids between the prefetch of a bucket and its probe
constexpr size_t kRowLead = 16;     // rows between their prefetch and their use, at least
constexpr size_t kSecondBlock = 8;  // the same as kBlock for second buckets
// Into the second-level cache: the first would be full of lines in flight.
constexpr int kLocality = 2;
constexpr size_t kRing = 64;
constexpr size_t kQueue = 128;
static_assert(kBucketLead % kBlock == 0 && kRing >= kBucketLead + kBlock && kRing >= 2 * kBlock + 2 * kSecondBlock);
static_assert(kQueue >= kRowLead + 4 * kBlock + 2 * kSecondBlock);

struct Hit {
    uint32_t position;
    uint32_t row;
    Slot* slot;
};

// Calls work.prefetch(hit) and, kRowLead ids later, work.visit(hit) for every id that has a slot; lists the others as
// missing, in order.
//
// Whether an id is in its first bucket is decided by memory that has just arrived, and a mispredicted branch on it
// would stop everything behind it. So nothing branches on one id: each is appended to both queues, and the length of
// one of them grows; the queues are worked off in blocks of constant size. The stages are inlined: they would pass the
// queues' lengths through memory, and each id would wait for the one before.
template <bool kOrdered, class Work> void run(const Buckets buckets, const Batch batch, Work work, Found& found) {
    Bucket* ring[kRing];
    uint32_t second[kRing];
    Bucket* second_bucket[kRing];
    Hit queue[kQueue];
    size_t second_head = 0, second_fetched = 0, second_tail = 0;
    size_t head = 0, tail = 0;
    const size_t n = batch.count;
    const int64_t* const ids = batch.ids;
    const uint32_t* const order = batch.order;
    uint32_t* const missing = found.missing;
    size_t missing_count = 0;
    const auto position = [order](size_t i)
                              MINUTELY_INLINE -> uint32_t { return kOrdered ? order[i] : static_cast<uint32_t>(i); };

    const auto fetch = [&](size_t i) MINUTELY_INLINE {
        Bucket* bucket = buckets.bucket(buckets.hash.first(static_cast<uint64_t>(ids[position(i)])));
        __builtin_prefetch(bucket, 0, kLocality);
        ring[i % kRing] = bucket;
    };
    const auto probe = [&](uint32_t at, Bucket* bucket) MINUTELY_INLINE -> bool {
        const uint64_t id = static_cast<uint64_t>(ids[at]);
        auto* slot = reinterpret_cast<Slot*>(reinterpret_cast<std::byte*>(bucket) + match(bucket, id));
        // Beside a writer a match is a hint: what counts is the slot loaded whole.
        const Slot seen = load_slot(slot);
        const bool hit = (seen.key == id) & (seen.row != kNoRow);
        // Where it is not this id's slot, row 0: another id's row would be fetched for nothing.
        const uint32_t row = seen.number() & -static_cast<uint32_t>(hit);
        queue[tail % kQueue] = work.hit(at, row, slot, seen);
        work.prefetch(row);
        tail += hit;
        return hit;
    };
    const auto probe_first = [&](size_t i) MINUTELY_INLINE {
        const uint32_t at = position(i);
        second[second_tail % kRing] = at;
        second_tail += !probe(at, ring[i % kRing]);
    };
    const auto fetch_second = [&]() MINUTELY_INLINE {
        const Hash& hash = buckets.hash;
        const uint64_t id = static_cast<uint64_t>(ids[second[second_fetched % kRing]]);
        Bucket* bucket = buckets.bucket(hash.second(hash.first(id)));
        __builtin_prefetch(bucket, 0, kLocality);
        second_bucket[second_fetched++ % kRing] = bucket;
    };
    const auto probe_second = [&]() MINUTELY_INLINE {
        const uint32_t at = second[second_head % kRing];
        missing[missing_count] = at;
        missing_count += !probe(at, second_bucket[second_head++ % kRing]);
    };

    const size_t whole = n / kBlock * kBlock;
    for (size_t base = 0; base < whole + kBucketLead; base += kBlock) {
        if (base < whole) {
            for (size_t i = base; i < base + kBlock; ++i) fetch(i);
        }
        if (base < kBucketLead) continue;
        while (second_fetched - second_head >= kSecondBlock) {
            for (size_t k = 0; k < kSecondBlock; ++k) probe_second();
        }
        for (size_t i = base - kBucketLead; i < base - kBucketLead + kBlock; ++i) probe_first(i);
        while (second_tail - second_fetched >= kSecondBlock) {
            for (size_t k = 0; k < kSecondBlock; ++k) fetch_second();
        }
        while (tail - head >= kRowLead + kBlock) {
            for (size_t k = 0; k < kBlock; ++k) work.visit(queue[head++ % kQueue]);
        }
    }
    for (size_t i = whole; i < n; ++i) {
        fetch(i);
        probe_first(i);
    }
    while (second_fetched != second_tail) fetch_second();
    while (second_head != second_tail) probe_second();
    while (head != tail) work.visit(queue[head++ % kQueue]);
    found.missing_count = missing_count;
}

template <class Work> void run_any(const Buckets& buckets, const Batch& batch, Work work, Found& found) {
    if (batch.order != nullptr) {
        run<true>(buckets, batch, work, found);
    } else {
        run<false>(buckets, batch, work, found);
    }
}

// The stride of rows is known at compile time where the dimension is and nothing lies behind the embedding.
template <uint32_t kDim> struct Place {
    std::byte* data;
    size_t stride_bytes;

    explicit Place(const RowArea& rows) : data(rows.data), stride_bytes(rows.stride_bytes) {}
    std::byte* row(uint32_t number) const { return data + number * (kDim != 0 ? kDim * sizeof(float) : stride_bytes); }
};
inline bool tight(const RowArea& rows, uint32_t dim) {
    return rows.dim == dim && rows.stride_bytes == dim * sizeof(float);
}

template <bool kWrite> inline void prefetch_lines(const std::byte* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, kWrite ? 1 : 0, kLocality);
}

template <uint32_t kDim> inline void copy_floats(float* __restrict to, const float* __restrict from, uint32_t dim) {
    const uint32_t n = kDim != 0 ? kDim : dim;
    for (uint32_t j = 0; j < n; ++j) to[j] = from[j];
}

inline void decode(const RowArea& rows, const Slot& slot, float* __restrict out) {
    const std::byte* row = rows.row(slot.number());
    if (rows.format == RowFormat::kFloat16) {
        const auto* halves = reinterpret_cast<const uint16_t*>(row);
        for (uint32_t j = 0; j < rows.dim; ++j) out[j] = half_to_float(halves[j]);
    } else if (rows.format == RowFormat::kInt8) {
        const auto* levels = reinterpret_cast<const int8_t*>(row);
        const float scale = slot.aux_float();
        for (uint32_t j = 0; j < rows.dim; ++j) out[j] = static_cast<float>(levels[j]) * scale;
    } else {
        copy_floats<0>(out, reinterpret_cast<const float*>(row), rows.dim);
    }
}

inline void encode(const RowArea& rows, Slot* slot, const float* __restrict embedding) {
    std::byte* row = rows.row(slot->number());
    if (rows.format == RowFormat::kFloat16) {
        auto* halves = reinterpret_cast<uint16_t*>(row);
        for (uint32_t j = 0; j < rows.dim; ++j) halves[j] = float_to_half(embedding[j]);
    } else if (rows.format == RowFormat::kInt8) {
        float largest = 0.0f;
        for (uint32_t j = 0; j < rows.dim; ++j) largest = std::fmax(largest, std::fabs(embedding[j]));
        float scale = largest / 127.0f;
        if (scale < FLT_MIN) scale = 0.0f;  // a subnormal one is too coarse: encoded again, the row would change
        auto* levels = reinterpret_cast<int8_t*>(row);
        for (uint32_t j = 0; j < rows.dim; ++j) {
            const float level = scale > 0.0f ? std::nearbyint(embedding[j] / scale) : 0.0f;
            levels[j] = static_cast<int8_t>(level > 127.0f ? 127.0f : (level < -127.0f ? -127.0f : level));
        }
        slot->set_aux(scale);
    } else {
        copy_floats<0>(reinterpret_cast<float*>(row), embedding, rows.dim);
    }
}

template <uint32_t kDim, bool kPlain> struct LookupWork {
    RowArea rows;
    Place<kDim> place;
    float* out;
    size_t bytes;

    // A reader keeps the slot's content instead of its place.
    Hit hit(uint32_t position, uint32_t row, Slot*, const Slot& seen) const {
        return {position, row, reinterpret_cast<Slot*>(static_cast<uintptr_t>(seen.aux))};
    }
    void prefetch(uint32_t row) const {
        prefetch_lines<false>(place.row(row), kDim != 0 ? kDim * sizeof(float) : bytes);
    }
    void visit(const Hit& hit) const {
        const uint32_t dim = kDim != 0 ? kDim : rows.dim;
        float* to = out + static_cast<size_t>(hit.position) * dim;
        if constexpr (kPlain) {
            copy_floats<kDim>(to, reinterpret_cast<const float*>(place.row(hit.row)), dim);
        } else {
            decode(rows, Slot{0, hit.row, static_cast<uint32_t>(reinterpret_cast<uintptr_t>(hit.slot))}, to);
        }
    }
};

template <uint32_t kDim, bool kPlain>
void lookup_as(const Buckets& buckets, const RowArea& rows, const Batch& batch, float* out, size_t bytes,
               Found& found) {
    run_any(buckets, batch, LookupWork<kDim, kPlain>{rows, Place<kDim>(rows), out, bytes}, found);
}

void lookup(const Buckets& buckets, const RowArea& rows, const Batch& batch, float* out, Found& found) {
    const size_t whole = rows.dim * sizeof(float);
    if (rows.format == RowFormat::kFloat16) return lookup_as<0, false>(buckets, rows, batch, out, whole / 2, found);
    if (rows.format == RowFormat::kInt8) return lookup_as<0, false>(buckets, rows, batch, out, whole / 4, found);
    if (tight(rows, 16)) return lookup_as<16, true>(buckets, rows, batch, out, whole, found);
    if (tight(rows, 64)) return lookup_as<64, true>(buckets, rows, batch, out, whole, found);
    lookup_as<0, true>(buckets, rows, batch, out, whole, found);
}

// What touch and apply share.
template <uint32_t kDim> struct ChangeWork {
    Place<kDim> place;
    uint32_t dim;
    Sight* sights;
    uint32_t now_seconds;
    Found* found;

    Hit hit(uint32_t position, uint32_t row, Slot* slot, const Slot&) const { return {position, row, slot}; }
    void see(uint32_t row) const {
        Sight& sight = sights[row];
        if (sight.last_seen_seconds < now_seconds) sight.last_seen_seconds = now_seconds;
    }
    void mark_changed(const Hit& hit) const {
        if ((hit.slot->row & kChanged) != 0) [[likely]]
            return;
        hit.slot->row |= kChanged;
        found->changed[found->changed_count++] = hit.position;
        see(hit.row);
    }
};

template <uint32_t kDim> struct TouchWork : ChangeWork<kDim> {
    float* out;

    void prefetch(uint32_t row) const {
        prefetch_lines<false>(this->place.row(row), (kDim != 0 ? kDim : this->dim) * sizeof(float));
        __builtin_prefetch(this->sights + row, 1, kLocality);
    }
    void visit(const Hit& hit) const {
        float* to = out + static_cast<size_t>(hit.position) * this->dim;
        copy_floats<kDim>(to, reinterpret_cast<const float*>(this->place.row(hit.row)), this->dim);
        this->see(hit.row);
        Sight& sight = this->sights[hit.row];
        sight.count += sight.count != UINT32_MAX;
        this->mark_changed(hit);
    }
};

template <uint32_t kDim>
void touch_as(const Buckets& buckets, const RowArea& rows, const Batch& batch, uint32_t now_seconds, float* out,
              Found& found) {
    run_any(buckets, batch, TouchWork<kDim>{{Place<kDim>(rows), rows.dim, rows.sights, now_seconds, &found}, out},
            found);
}

void touch(const Buckets& buckets, const RowArea& rows, const Batch& batch, uint32_t now_seconds, float* out,
           Found& found) {
    if (tight(rows, 16)) return touch_as<16>(buckets, rows, batch, now_seconds, out, found);
    if (tight(rows, 64)) return touch_as<64>(buckets, rows, batch, now_seconds, out, found);
    touch_as<0>(buckets, rows, batch, now_seconds, out, found);
}

template <OptimizerKind kKind, uint32_t kDim> struct ApplyWork : ChangeWork<kDim> {
    Optimizer with;
    const float* gradients;
    size_t bytes;

    void prefetch(uint32_t row) const {
        prefetch_lines<true>(this->place.row(row), kDim != 0 ? kDim * sizeof(float) : bytes);
    }
    void visit(const Hit& hit) const {
        auto* row = reinterpret_cast<float*>(this->place.row(hit.row));
        const float* gradient = gradients + static_cast<size_t>(hit.position) * this->dim;
        if (step<kKind, kDim>(with, this->dim, row, hit.slot, gradient)) [[likely]] {
            this->mark_changed(hit);
        } else {
            this->found->rejected[this->found->rejected_count++] = hit.position;
        }
    }
};

// Calls go(tag) with the optimizer's kind and, where it is worth the code, the dimension as compile-time constants.
template <OptimizerKind kK, uint32_t kD> struct StepTag {
    static constexpr OptimizerKind kKind = kK;
    static constexpr uint32_t kDim = kD;
};
template <class Go> auto for_optimizer(OptimizerKind kind, uint32_t dim, Go go) {
    switch (kind) {
    case OptimizerKind::kSgd:
        return go(StepTag<OptimizerKind::kSgd, 0>{});
    case OptimizerKind::kAdagrad:
        return go(StepTag<OptimizerKind::kAdagrad, 0>{});
    case OptimizerKind::kAdam:
        return go(StepTag<OptimizerKind::kAdam, 0>{});
    case OptimizerKind::kFtrl:
        return go(StepTag<OptimizerKind::kFtrl, 0>{});
    case OptimizerKind::kMomentum:
        return go(StepTag<OptimizerKind::kMomentum, 0>{});
    case OptimizerKind::kRowAdagrad:
        break;
    }
    if (dim == 16) return go(StepTag<OptimizerKind::kRowAdagrad, 16>{});
    if (dim == 64) return go(StepTag<OptimizerKind::kRowAdagrad, 64>{});
    return go(StepTag<OptimizerKind::kRowAdagrad, 0>{});
}

void apply(const Buckets& buckets, const RowArea& rows, const Batch& batch, const Optimizer& with, uint32_t now_seconds,
           const float* gradients, Found& found) {
    const size_t bytes = (rows.dim + with.row_state(rows.dim)) * sizeof(float);
    for_optimizer(with.kind, rows.dim, [&](auto tag) {
        constexpr uint32_t kDim = decltype(tag)::kDim;
        using Work = ApplyWork<decltype(tag)::kKind, kDim>;
        run_any(buckets, batch,
                Work{{Place<kDim>(rows), rows.dim, rows.sights, now_seconds, &found}, with, gradients, bytes}, found);
    });
}

bool step_row(const Optimizer& with, uint32_t dim, float* row, Slot* slot, const float* gradient) {
    return for_optimizer(with.kind, dim, [&](auto tag) {
        return step<decltype(tag)::kKind, decltype(tag)::kDim>(with, dim, row, slot, gradient);
    });
}

extern const Kernels kKernels;
const Kernels kKernels = {MINUTELY_ISA_NAME, lookup, touch, apply, step_row, accumulate, decode, encode};

}  // namespace minutely::MINUTELY_ISA
