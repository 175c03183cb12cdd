// Splits a batch of gradients into ids that occur once and sums for those that occur more often.
//
// Most ids of a batch occur once, and finding them must not cost a hash table: a bitmap four bytes an id wide marks
// what was seen, a second one what was seen twice. An id whose second bit is set may share it with another (about one
// in forty), so those few go through an exact table; the others surely occur once.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace minutely {

class Duplicates {
  public:
    // Afterwards: where any_suspects(), singles() are the positions of ids that surely occur once, and sums() are n2
    // ids with the sums of their finite gradients in order of occurrence; otherwise every id of the batch occurs once.
    void split(const Kernels& kernels, const Hash& hash, uint32_t dim, const int64_t* ids, size_t count,
               const float* gradients);

    bool any_suspects() const { return any_suspects_; }
    const std::vector<uint32_t>& singles() const { return singles_; }
    const std::vector<int64_t>& summed_ids() const { return summed_ids_; }
    const std::vector<float>& sums() const { return sums_; }
    // Ids of the occurrences among the suspects whose gradient was not finite; they are in no sum.
    const std::vector<int64_t>& rejected() const { return rejected_; }

  private:
    std::vector<uint64_t> seen_, twice_;
    std::vector<uint32_t> singles_, suspects_, places_;
    std::vector<int64_t> summed_ids_, rejected_;
    std::vector<float> sums_;
    bool any_suspects_ = false;
};

}  // namespace minutely
