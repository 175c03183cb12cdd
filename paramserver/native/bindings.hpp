// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "buffers.hpp"
#include "table.hpp"

namespace minutely {

using Ids = Buffer<const int64_t>;
using Floats = Buffer<const float>;

constexpr int64_t kAny = -1;

inline void check_time(int64_t now_ms) {
    constexpr int64_t kLatestMs = int64_t{UINT32_MAX} * 1000;
    if (now_ms < 0 || now_ms > kLatestMs) {
        throw nb::value_error(("now_ms: event time must be within 0 and " + std::to_string(kLatestMs) +
                               " milliseconds since 1970, got " + std::to_string(now_ms))
                                  .c_str());
    }
}

inline void check_trains(const Table& table, const char* operation) {
    if (table.options().format != RowFormat::kTrain) {
        throw std::runtime_error(
            std::string(operation) + ": table \"" + table.options().name +
            "\" is a replica's (row_format is not \"train\"), whose rows change by upsert and erase alone");
    }
}

template <class T> nb::object to_numpy(std::vector<T>&& values, std::initializer_list<size_t> shape) {
    auto owned = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owned->data();
    nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

// tables_binding.cpp
void bind_tables(nb::module_& module);

}  // namespace minutely
