// The Python module streaming.live._native. Calls check their buffers, then long ones let go of the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "buffers.hpp"
#include "numbers.hpp"
#include "tally.hpp"

namespace minutely {

namespace {

// Lets go of the interpreter's lock for more rows than a request has: to get it back takes longer than a short call.
class Unlocked {
  public:
    explicit Unlocked(size_t rows) {
        if (rows > kRequest) release_.emplace();
    }

  private:
    static constexpr size_t kRequest = 4096;
    std::optional<nb::gil_scoped_release> release_;
};

// One lock-step of columns: as many numbers come out as there are reads.
void take(Tally& tally, nb::handle keys_object, nb::handle what_object, nb::handle at_object, nb::handle counted_object,
          nb::handle out_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    const auto count = static_cast<int64_t>(keys.size());
    Buffer<const int32_t> what(what_object, "what", "int32", {count});
    Buffer<const int64_t> at(at_object, "at", "int64", {count});
    Buffer<const int64_t> counted_at(counted_object, "counted_at", "int64", {count});
    const auto reads = std::count(what.data(), what.data() + count, kRead);
    Buffer<double> out(out_object, "out", "float64", {reads, static_cast<int64_t>(tally.width())});
    const int32_t last = kServed + tally.actions();
    if (std::any_of(what.data(), what.data() + count, [last](int32_t each) { return each < kRead || each > last; }))
        throw nb::value_error(("what: allowed: 0 to " + std::to_string(last)).c_str());
    const Unlocked unlocked(keys.size());
    tally.take(keys.data(), what.data(), at.data(), counted_at.data(), keys.size(), out.data());
}

void pack(const Tally& tally, nb::handle keys_object, nb::handle out_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    Buffer<uint64_t> out(out_object, "out", "uint64",
                         {static_cast<int64_t>(keys.size()), static_cast<int64_t>(tally.width())});
    const Unlocked unlocked(keys.size());
    tally.pack(keys.data(), keys.size(), out.data());
}

void put(Tally& tally, nb::handle keys_object, nb::handle packed_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    Buffer<const uint64_t> packed(packed_object, "packed", "uint64",
                                  {static_cast<int64_t>(keys.size()), static_cast<int64_t>(tally.width())});
    const Unlocked unlocked(keys.size());
    tally.put(keys.data(), keys.size(), packed.data());
}

void rates_of(nb::handle found_object, nb::handle shares_object, double prior, nb::handle out_object) {
    Buffer<const double> shares(shares_object, "shares", "float64", {-1, -1});
    Buffer<float> out(out_object, "out", "float32", {-1, -1});
    const auto reads = out.shape(0), width = out.shape(1), kinds = 1 + shares.shape(1);
    Buffer<const double> found(found_object, "found", "float64", {reads, 1 + width});
    if (width % kinds != 0 || (shares.shape(0) != 1 && shares.shape(0) != reads))
        throw nb::value_error("shares: allowed: one row, or one for each read, of each action");
    const Unlocked unlocked(reads);
    rates(found.data(), reads, width / kinds, kinds, shares.data(), shares.shape(0) == 1, prior, out.data());
}

void ages_of(nb::handle found_object, nb::handle at_object, double expire_ms, nb::handle out_object) {
    Buffer<float> out(out_object, "out", "float32", {-1, -1});
    Buffer<const double> found(found_object, "found", "float64", {out.shape(0), 1 + out.shape(1)});
    Buffer<const int64_t> at(at_object, "at", "int64", {out.shape(0)});
    const Unlocked unlocked(at.size());
    ages(found.data(), out.shape(0), out.shape(1), at.data(), expire_ms, out.data());
}

void seen_of(nb::handle found_object, nb::handle at_object, double within_ms, nb::handle out_object) {
    Buffer<float> out(out_object, "out", "float32", {-1, 2});
    Buffer<const double> found(found_object, "found", "float64", {out.shape(0), 2});
    Buffer<const int64_t> at(at_object, "at", "int64", {out.shape(0)});
    const Unlocked unlocked(at.size());
    seen(found.data(), out.shape(0), at.data(), within_ms, out.data());
}

}  // namespace

}  // namespace minutely

NB_MODULE(_native, module) {
    using minutely::Tally;
    namespace nb = nanobind;
    nb::class_<Tally>(module, "Tally")
        .def(nb::init<int64_t, std::vector<double>, int32_t, bool>(), nb::arg("expire_ms"), nb::arg("half_lives_ms"),
             nb::arg("actions"), nb::arg("keeps_times"))
        .def("take", &minutely::take, nb::arg("keys"), nb::arg("what"), nb::arg("at"), nb::arg("counted_at"),
             nb::arg("out"))
        .def("pack", &minutely::pack, nb::arg("keys"), nb::arg("out"))
        .def("put", &minutely::put, nb::arg("keys"), nb::arg("packed"))
        .def_prop_ro("keys", &Tally::keys)
        .def_prop_ro("width", &Tally::width)
        .def_prop_ro("bytes", &Tally::bytes);
    module.def("rates", &minutely::rates_of, nb::arg("found"), nb::arg("shares"), nb::arg("prior"), nb::arg("out"));
    module.def("ages", &minutely::ages_of, nb::arg("found"), nb::arg("at"), nb::arg("expire_ms"), nb::arg("out"));
    module.def("seen", &minutely::seen_of, nb::arg("found"), nb::arg("at"), nb::arg("within_ms"), nb::arg("out"));
}
