// The pipeline that keeps tens of cache misses in flight: hash and prefetch buckets, probe and prefetch rows, then work on rows.
//
// Chen, Ailamaki, Gibbons, Mowry, "Improving hash join performance through prefetching" (ICDE 2004): the stages of different
// ids are interleaved so that no stage waits for its own miss. The second bucket is only fetched when the first has no match.
#pragma once

#include "kernels_step.hpp"

namespace minutely::MINUTELY_ISA {

constexpr size_t kBlock = 16;       // ids a stage takes at a time
constexpr size_t kBucketLead = 16;  // ids between the prefetch of a bucket and its probe
constexpr size_t kRowLead = 24;     // rows between their prefetch and their use
constexpr size_t kQueue = 128;      // holds kRowLead and two blocks
static_assert(kQueue >= kRowLead + 3 * kBlock && kBucketLead % kBlock == 0);

struct Hit {
    uint32_t position;
    uint32_t row;
    Slot* slot;
    uint32_t aux;
};

template <bool kGrowing> inline Bucket* bucket_of(const Buckets& buckets, uint64_t hash) {
    const uint64_t old_index = high_product(hash, buckets.old_count);
    if constexpr (kGrowing) {
        if (old_index < buckets.migrated) return buckets.fresh_buckets + high_product(hash, buckets.fresh_count);
    }
    return buckets.old_buckets + old_index;
}

// Calls work.prefetch(hit) and, kRowLead ids later, work.visit(hit) for every id that has a slot; lists the others as missing.
template <bool kGrowing, bool kOrdered, class Work>
void run(const Buckets& buckets, const Batch& batch, Work& work, Found& found) {
    struct Second {
        uint32_t position;
        Bucket* bucket;
    };
    Bucket* ring[2 * kBucketLead];
    Second second[2][kBlock];
    size_t second_count[2] = {0, 0};
    Hit queue[kQueue];
    size_t head = 0, tail = 0;
    const size_t n = batch.count;
    const auto position = [&](size_t i) -> uint32_t { return kOrdered ? batch.order[i] : static_cast<uint32_t>(i); };
    const auto id_at = [&](uint32_t at) { return static_cast<uint64_t>(batch.ids[at]); };

    const auto probe = [&](uint32_t at, Bucket* bucket) -> bool {
        const uint64_t id = id_at(at);
        auto* slot = reinterpret_cast<Slot*>(reinterpret_cast<std::byte*>(bucket) + match(bucket, id));
        // Loaded once and whole: beside a writer, what was matched may be another id's by now.
        const Slot seen = load_slot(slot);
        const bool hit = (seen.key == id) & (seen.row != kNoRow);
        Hit& entry = queue[tail % kQueue];
        entry = {at, seen.number(), slot, seen.aux};
        work.prefetch(entry);
        tail += hit;
        return hit;
    };

    for (size_t base = 0, turn = 0; base < n + kBucketLead + kBlock; base += kBlock, turn ^= 1) {
        const size_t hash_end = base + kBlock < n ? base + kBlock : n;
        for (size_t i = base; i < hash_end; ++i) {
            Bucket* bucket = bucket_of<kGrowing>(buckets, buckets.hash.first(id_at(position(i))));
            __builtin_prefetch(bucket, 0, Work::kBucketLocality);
            ring[i % (2 * kBucketLead)] = bucket;
        }
        for (size_t k = 0; k < second_count[turn ^ 1]; ++k) {
            const Second& other = second[turn ^ 1][k];
            if (!probe(other.position, other.bucket)) found.missing[found.missing_count++] = other.position;
        }
        second_count[turn ^ 1] = 0;
        size_t& seconds = second_count[turn];
        if (base >= kBucketLead) {
            const size_t stop = base - kBucketLead + kBlock < n ? base - kBucketLead + kBlock : n;
            for (size_t i = base - kBucketLead; i < stop; ++i) {
                const uint32_t at = position(i);
                if (!probe(at, ring[i % (2 * kBucketLead)])) [[unlikely]] {
                    const Hash& hash = buckets.hash;
                    Bucket* bucket = bucket_of<kGrowing>(buckets, hash.second(hash.first(id_at(at))));
                    __builtin_prefetch(bucket, 0, Work::kBucketLocality);
                    second[turn][seconds++] = {at, bucket};
                }
            }
        }
        while (tail - head > kRowLead) work.visit(queue[head++ % kQueue]);
    }
    while (head != tail) work.visit(queue[head++ % kQueue]);
}

template <class Work> void run_any(const Buckets& buckets, const Batch& batch, Work work, Found& found) {
    work.found = &found;
    const bool growing = buckets.fresh_buckets != nullptr;
    if (batch.order != nullptr) {
        growing ? run<true, true>(buckets, batch, work, found) : run<false, true>(buckets, batch, work, found);
    } else {
        growing ? run<true, false>(buckets, batch, work, found) : run<false, false>(buckets, batch, work, found);
    }
}

template <bool kWrite, int kLocality> inline void prefetch_lines(const std::byte* from, size_t bytes) {
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
        const float scale = largest / 127.0f;
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
    static constexpr int kBucketLocality = 2;
    const RowArea& rows;
    float* out;
    size_t bytes;
    Found* found = nullptr;

    void prefetch(const Hit& hit) const {
        prefetch_lines<false, 2>(rows.row(hit.row), kDim != 0 ? kDim * sizeof(float) : bytes);
    }
    void visit(const Hit& hit) const {
        const uint32_t dim = kDim != 0 ? kDim : rows.dim;
        float* to = out + static_cast<size_t>(hit.position) * dim;
        if constexpr (kPlain) {
            copy_floats<kDim>(to, reinterpret_cast<const float*>(rows.row(hit.row)), dim);
        } else {
            decode(rows, Slot{0, hit.row, hit.aux}, to);
        }
    }
};

void lookup(const Buckets& buckets, const RowArea& rows, const Batch& batch, float* out, Found& found) {
    const size_t whole = rows.dim * sizeof(float);
    if (rows.format == RowFormat::kFloat16) {
        run_any(buckets, batch, LookupWork<0, false>{rows, out, whole / 2}, found);
    } else if (rows.format == RowFormat::kInt8) {
        run_any(buckets, batch, LookupWork<0, false>{rows, out, whole / 4}, found);
    } else if (rows.dim == 16) {
        run_any(buckets, batch, LookupWork<16, true>{rows, out, whole}, found);
    } else if (rows.dim == 64) {
        run_any(buckets, batch, LookupWork<64, true>{rows, out, whole}, found);
    } else {
        run_any(buckets, batch, LookupWork<0, true>{rows, out, whole}, found);
    }
}

inline void mark_changed(const RowArea& rows, const Hit& hit, uint32_t now_seconds, Found& found) {
    if ((hit.slot->row & kChanged) == 0) {
        hit.slot->row |= kChanged;
        found.changed[found.changed_count++] = hit.position;
        Sight& sight = rows.sights[hit.row];
        if (sight.last_seen_seconds < now_seconds) sight.last_seen_seconds = now_seconds;
    }
}

template <uint32_t kDim> struct TouchWork {
    static constexpr int kBucketLocality = 2;
    const RowArea& rows;
    float* out;
    uint32_t now_seconds;
    Found* found = nullptr;

    void prefetch(const Hit& hit) const {
        prefetch_lines<false, 2>(rows.row(hit.row), (kDim != 0 ? kDim : rows.dim) * sizeof(float));
        __builtin_prefetch(rows.sights + hit.row, 1, 2);
    }
    void visit(const Hit& hit) const {
        const uint32_t dim = kDim != 0 ? kDim : rows.dim;
        copy_floats<kDim>(out + static_cast<size_t>(hit.position) * dim, reinterpret_cast<const float*>(rows.row(hit.row)), dim);
        Sight& sight = rows.sights[hit.row];
        if (sight.last_seen_seconds < now_seconds) sight.last_seen_seconds = now_seconds;
        sight.count += sight.count != UINT32_MAX;
        mark_changed(rows, hit, now_seconds, *found);
    }
};

void touch(const Buckets& buckets, const RowArea& rows, const Batch& batch, uint32_t now_seconds, float* out, Found& found) {
    if (rows.dim == 16) {
        run_any(buckets, batch, TouchWork<16>{rows, out, now_seconds}, found);
    } else if (rows.dim == 64) {
        run_any(buckets, batch, TouchWork<64>{rows, out, now_seconds}, found);
    } else {
        run_any(buckets, batch, TouchWork<0>{rows, out, now_seconds}, found);
    }
}

template <OptimizerKind kKind, uint32_t kDim> struct ApplyWork {
    static constexpr int kBucketLocality = 2;
    const RowArea& rows;
    const Optimizer& with;
    const float* gradients;
    uint32_t now_seconds;
    size_t bytes;
    Found* found = nullptr;

    void prefetch(const Hit& hit) const {
        prefetch_lines<true, 2>(rows.row(hit.row), kDim != 0 ? kDim * sizeof(float) : bytes);
    }
    void visit(const Hit& hit) const {
        const uint32_t dim = kDim != 0 ? kDim : rows.dim;
        auto* row = reinterpret_cast<float*>(rows.row(hit.row));
        if (step<kKind, kDim>(with, dim, row, hit.slot, gradients + static_cast<size_t>(hit.position) * dim)) [[likely]] {
            mark_changed(rows, hit, now_seconds, *found);
        } else {
            found->rejected[found->rejected_count++] = hit.position;
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
        using Work = ApplyWork<decltype(tag)::kKind, decltype(tag)::kDim>;
        run_any(buckets, batch, Work{rows, with, gradients, now_seconds, bytes}, found);
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
