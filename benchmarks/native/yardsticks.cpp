// Yardsticks for the table: rows whose numbers are known (no hash table can be faster), and libcuckoo, the standard
// concurrent cuckoo hash table. They take the same buffers and do the same work per row as the table does.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>

#include "hash.hpp"
#include "memory.hpp"

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
    void gather(Numbers numbers, Out out, int lead) { each(numbers, lead, Copy{out.data()}); }
    // The limit of apply: row-wise Adagrad on rows of known numbers, their accumulators in an array beside.
    void update(Numbers numbers, In gradients, int lead) { each(numbers, lead, Step{gradients.data()}); }

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

    template <class Work> void each(const Numbers& numbers, int lead, Work work) {
        const nb::gil_scoped_release released;
        const auto ahead = static_cast<size_t>(lead);
        dim_ == 16 ? run<16>(numbers.data(), numbers.size(), ahead, work)
                   : run<64>(numbers.data(), numbers.size(), ahead, work);
    }
    template <int kDim, class Work> void run(const int64_t* numbers, size_t n, size_t ahead, const Work& work) {
        auto* rows = reinterpret_cast<float*>(rows_.data());
        auto* sums = reinterpret_cast<float*>(sums_.data());
        const auto fetch = [&](size_t i) {
            for (int j = 0; j < kDim; j += 16) __builtin_prefetch(rows + numbers[i] * kDim + j, 0, 2);
            if (Work::kSums) __builtin_prefetch(sums + numbers[i], 0, 2);
        };
        for (size_t i = 0; i < std::min(n, ahead); ++i) fetch(i);
        for (size_t i = 0; i < n; ++i) {
            if (i + ahead < n) fetch(i + ahead);
            work.template work<kDim>(rows + numbers[i] * kDim, sums + numbers[i], i);
        }
    }

    int dim_;
    minutely::VirtualArray rows_, sums_;
};

// What the machine gives one core: fresh memory, and random cache lines of it.
class Memory {
  public:
    // In the same kind of memory as the table's.
    explicit Memory(size_t bytes) : lines_(bytes / sizeof(Line)), memory_(bytes) {
        const auto start = std::chrono::steady_clock::now();
        memory_.commit(memory_.reserved());
        for (size_t at = 0; at < memory_.reserved(); at += 4096) memory_.data()[at] = std::byte{1};
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        fresh_bytes_per_second_ = static_cast<double>(memory_.reserved()) / seconds.count();
    }

    // Of pages touched for the first time, as the system hands them out.
    double fresh_bytes_per_second() const { return fresh_bytes_per_second_; }
    uint64_t read(uint64_t seed, size_t count, size_t lead) { return each<false>(seed, count, lead); }
    uint64_t update(uint64_t seed, size_t count, size_t lead) { return each<true>(seed, count, lead); }

  private:
    struct Line {
        uint64_t words[8];
    };
    template <bool kWrite> uint64_t each(uint64_t seed, size_t count, size_t lead) {
        const nb::gil_scoped_release released;
        auto* lines = reinterpret_cast<Line*>(memory_.data());
        std::array<Line*, 64> ring;
        uint64_t state = seed, sum = 0;
        const auto fetch = [&](size_t i) {
            Line* line = lines + minutely::high_product(minutely::splitmix64(state), lines_);
            __builtin_prefetch(line, kWrite ? 1 : 0, 2);
            ring[i % ring.size()] = line;
        };
        for (size_t i = 0; i < lead; ++i) fetch(i);
        for (size_t i = 0; i < count; ++i) {
            fetch(i + lead);
            Line& line = *ring[i % ring.size()];
            sum += line.words[0];
            if (kWrite) line.words[0] = sum;
        }
        return sum;
    }

    size_t lines_;
    minutely::VirtualArray memory_;
    double fresh_bytes_per_second_ = 0;
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
        .def("gather", &Array::gather, nb::arg("numbers"), nb::arg("out"), nb::arg("lead"))
        .def("update", &Array::update, nb::arg("numbers"), nb::arg("gradients"), nb::arg("lead"));
    nb::class_<Memory>(module, "Memory")
        .def(nb::init<size_t>(), nb::arg("bytes"))
        .def_prop_ro("fresh_bytes_per_second", &Memory::fresh_bytes_per_second)
        .def("read", &Memory::read, nb::arg("seed"), nb::arg("count"), nb::arg("lead"))
        .def("update", &Memory::update, nb::arg("seed"), nb::arg("count"), nb::arg("lead"));
#if defined(YARDSTICK_LIBCUCKOO)
    bind_cuckoo<16>(module, "Cuckoo16");
    bind_cuckoo<64>(module, "Cuckoo64");
#endif
}
