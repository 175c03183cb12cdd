// Yardsticks for the table: rows whose numbers are known (no hash table can be faster), and libcuckoo, the standard
// concurrent cuckoo hash table. They take the same buffers and do the same work per row as the table does.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>

#include "memory.hpp"
#include "pool.hpp"

#if defined(YARDSTICK_LIBCUCKOO)
#include <libcuckoo/cuckoohash_map.hh>
#endif

namespace nb = nanobind;

namespace {

using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));

template <int kDim> float adagrad(float* __restrict row, const float* __restrict gradient, float sum) {
    Eight eight = {};
    for (int j = 0; j < kDim; j += 8) {
        Eight g;
        std::memcpy(&g, gradient + j, sizeof g);
        eight += g * g;
    }
    Four four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
    four += __builtin_shufflevector(four, four, 1, 0, 3, 2);
    sum += four[0] / kDim;
    const float factor = 0.01f / (std::sqrt(sum) + 1e-10f);
    for (int j = 0; j < kDim; ++j) row[j] -= factor * gradient[j];
    return sum;
}

// An array of rows and one of accumulators, in the same kind of memory as the table's.
class Array {
  public:
    Array(uint64_t rows, int dim) : dim_(dim), rows_(rows * dim * sizeof(float)), sums_(rows * sizeof(float)) {
        if (dim != 16 && dim != 64) throw nb::value_error("dim must be 16 or 64");
        rows_.commit(rows_.reserved());
        sums_.commit(sums_.reserved());
        std::fill_n(reinterpret_cast<float*>(rows_.data()), rows * dim, 0.5f);
        std::fill_n(reinterpret_cast<float*>(sums_.data()), rows, 0.5f);
    }

    // The limit of lookup: copies rows of known numbers. `lead` is how many rows ahead the prefetches run.
    void gather(Numbers numbers, Out out, int lead, int threads) { each(numbers, threads, lead, Copy{out.data()}); }
    // The limit of apply: row-wise Adagrad on rows of known numbers, their accumulators in an array beside.
    void update(Numbers numbers, In gradients, int lead, int threads) {
        each(numbers, threads, lead, Step{gradients.data()});
    }

  private:
    struct Copy {
        float* out;
        static constexpr bool kSums = false;
        template <int kDim> void work(float* row, float*, size_t i) const {
            for (int j = 0; j < kDim; ++j) out[i * kDim + j] = row[j];
        }
    };
    struct Step {
        const float* gradients;
        static constexpr bool kSums = true;
        template <int kDim> void work(float* row, float* sum, size_t i) const {
            *sum = adagrad<kDim>(row, gradients + i * kDim, *sum);
        }
    };

    template <class Work> void each(const Numbers& numbers, int threads, int lead, Work work) {
        const nb::gil_scoped_release released;
        const size_t n = numbers.size();
        const auto parts = static_cast<size_t>(threads);
        const auto part = [&](size_t i) {
            const size_t from = n * i / parts, to = n * (i + 1) / parts;
            dim_ == 16 ? range<16>(numbers.data(), from, to, lead, work)
                       : range<64>(numbers.data(), from, to, lead, work);
        };
        minutely::Pool::shared().run(parts, parts, part);
    }
    template <int kDim, class Work>
    void range(const int64_t* numbers, size_t from, size_t to, int lead, const Work& work) {
        auto* rows = reinterpret_cast<float*>(rows_.data());
        auto* sums = reinterpret_cast<float*>(sums_.data());
        const auto fetch = [&](size_t i) {
            for (int j = 0; j < kDim; j += 16) __builtin_prefetch(rows + numbers[i] * kDim + j, 0, 2);
            if (Work::kSums) __builtin_prefetch(sums + numbers[i], 0, 2);
        };
        const size_t ahead = static_cast<size_t>(lead);
        for (size_t i = from; i < std::min(to, from + ahead); ++i) fetch(i);
        for (size_t i = from; i < to; ++i) {
            if (i + ahead < to) fetch(i + ahead);
            work.template work<kDim>(rows + numbers[i] * kDim, sums + numbers[i], i);
        }
    }

    int dim_;
    minutely::VirtualArray rows_, sums_;
};

#if defined(YARDSTICK_LIBCUCKOO)
template <int kDim> struct CuckooRow {
    std::array<float, kDim> embedding{};
    float sum = 0.5f;
};

// libcuckoo with the row as its value, used through the calls its documentation recommends.
template <int kDim> class Cuckoo {
  public:
    void insert(Numbers ids) {
        const nb::gil_scoped_release released;
        for (size_t i = 0; i < ids.size(); ++i) map_.insert(ids.data()[i], CuckooRow<kDim>{});
    }
    void reserve(size_t rows) { map_.reserve(rows); }
    // Keeps its memory.
    void clear() { map_.clear(); }
    void lookup(Numbers ids, Out out) {
        const nb::gil_scoped_release released;
        for (size_t i = 0; i < ids.size(); ++i) {
            float* to = out.data() + i * kDim;
            if (!map_.find_fn(ids.data()[i],
                              [to](const CuckooRow<kDim>& row) { std::copy_n(row.embedding.data(), kDim, to); })) {
                std::fill_n(to, kDim, 0.0f);
            }
        }
    }
    void apply(Numbers ids, In gradients) {
        const nb::gil_scoped_release released;
        for (size_t i = 0; i < ids.size(); ++i) {
            const float* gradient = gradients.data() + i * kDim;
            map_.update_fn(ids.data()[i], [gradient](CuckooRow<kDim>& row) {
                row.sum = adagrad<kDim>(row.embedding.data(), gradient, row.sum);
            });
        }
    }

  private:
    libcuckoo::cuckoohash_map<int64_t, CuckooRow<kDim>> map_;
};

template <int kDim> void bind_cuckoo(nb::module_& module, const char* name) {
    using Map = Cuckoo<kDim>;
    nb::class_<Map>(module, name)
        .def(nb::init<>())
        .def("insert", &Map::insert)
        .def("reserve", &Map::reserve)
        .def("clear", &Map::clear)
        .def("lookup", &Map::lookup)
        .def("apply", &Map::apply);
}
#endif

}  // namespace

NB_MODULE(_yardsticks, module) {
    nb::class_<Array>(module, "Array")
        .def(nb::init<uint64_t, int>(), nb::arg("rows"), nb::arg("dim"))
        .def("gather", &Array::gather, nb::arg("numbers"), nb::arg("out"), nb::arg("lead"), nb::arg("threads"))
        .def("update", &Array::update, nb::arg("numbers"), nb::arg("gradients"), nb::arg("lead"), nb::arg("threads"));
#if defined(YARDSTICK_LIBCUCKOO)
    bind_cuckoo<16>(module, "Cuckoo16");
    bind_cuckoo<64>(module, "Cuckoo64");
#endif
}
