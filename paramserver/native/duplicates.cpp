#include "duplicates.hpp"

#include <algorithm>
#include <bit>

namespace minutely {

namespace {
constexpr size_t kFewestBits = 4096;
constexpr size_t kMostBits = size_t{1} << 27;
}  // namespace

void Duplicates::split(const Kernels& kernels, const Hash& hash, uint32_t dim, const int64_t* ids, size_t count,
                       const float* gradients) {
    const size_t bits = std::clamp(std::bit_ceil(count * 32), kFewestBits, kMostBits);
    const int shift = 64 - std::countr_zero(bits);
    seen_.assign(bits / 64, 0);
    any_suspects_ = false;
    const auto bit_of = [&](int64_t id) { return hash.first(static_cast<uint64_t>(id)) >> shift; };
    // Without a suspect the second bitmap is never read, so it is only cleared when the first one turns up.
    uint64_t* seen = seen_.data();
    for (size_t i = 0; i < count; ++i) {
        const uint64_t bit = bit_of(ids[i]);
        const uint64_t mask = uint64_t{1} << (bit % 64);
        if (seen[bit / 64] & mask) [[unlikely]] {
            if (!any_suspects_) twice_.assign(bits / 64, 0);
            any_suspects_ = true;
            twice_[bit / 64] |= mask;
        }
        seen[bit / 64] |= mask;
    }
    singles_.clear();
    suspects_.clear();
    summed_ids_.clear();
    rejected_.clear();
    sums_.clear();
    if (!any_suspects_) return;

    singles_.resize(count);
    suspects_.resize(count);
    size_t single_count = 0, suspect_count = 0;
    for (size_t i = 0; i < count; ++i) {
        const uint64_t bit = bit_of(ids[i]);
        const bool suspect = (twice_[bit / 64] >> (bit % 64)) & 1;
        singles_[single_count] = static_cast<uint32_t>(i);
        suspects_[suspect_count] = static_cast<uint32_t>(i);
        suspect_count += suspect;
        single_count += !suspect;
    }
    singles_.resize(single_count);
    suspects_.resize(suspect_count);

    // Linear probing at a load of at most one half; a place holds the index of a sum plus one.
    const size_t places = std::bit_ceil(suspect_count * 2);
    const int place_shift = 64 - std::countr_zero(places);
    places_.assign(places, 0);
    for (const uint32_t at : suspects_) {
        const uint64_t id = static_cast<uint64_t>(ids[at]);
        size_t place = hash.second(hash.first(id)) >> place_shift;
        while (places_[place] != 0 && summed_ids_[places_[place] - 1] != ids[at]) place = (place + 1) % places;
        const bool first = places_[place] == 0;
        if (first) {
            summed_ids_.push_back(ids[at]);
            sums_.resize(summed_ids_.size() * dim, 0.0f);
            places_[place] = static_cast<uint32_t>(summed_ids_.size());
        }
        float* sum = sums_.data() + static_cast<size_t>(places_[place] - 1) * dim;
        if (kernels.accumulate(sum, gradients + static_cast<size_t>(at) * dim, dim)) continue;
        rejected_.push_back(ids[at]);
        if (first) {
            // An id takes a step only for a gradient that counts; the place was the last one taken, so it can be given
            // back.
            summed_ids_.pop_back();
            sums_.resize(summed_ids_.size() * dim);
            places_[place] = 0;
        }
    }
}

}  // namespace minutely
