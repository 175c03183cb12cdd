// The Python module streaming.live._native. Calls check their buffers, then long ones let go of the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "buffers.hpp"
#include "numbers.hpp"
#include "tally.hpp"
#include "trail.hpp"

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

void check_what(const Buffer<const int32_t>& what, int32_t actions) {
    const int32_t last = kServed + actions;
    if (std::any_of(what.data(), what.data() + what.size(),
                    [last](int32_t each) { return each < kRead || each > last; }))
        throw nb::value_error(("what: allowed: 0 to " + std::to_string(last)).c_str());
}

int64_t reads_of(const Buffer<const int32_t>& what) {
    return std::count(what.data(), what.data() + what.size(), kRead);
}

// One lock-step of columns: as many numbers come out as there are reads.
void tally_take(Tally& tally, nb::handle keys_object, nb::handle what_object, nb::handle at_object,
                nb::handle counted_object, nb::handle out_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    const auto count = static_cast<int64_t>(keys.size());
    Buffer<const int32_t> what(what_object, "what", "int32", {count});
    Buffer<const int64_t> at(at_object, "at", "int64", {count});
    Buffer<const int64_t> counted_at(counted_object, "counted_at", "int64", {count});
    const auto width = static_cast<int64_t>(tally.records().width());
    Buffer<double> out(out_object, "out", "float64", {reads_of(what), width});
    check_what(what, tally.actions());
    const Unlocked unlocked(keys.size());
    tally.take(keys.data(), what.data(), at.data(), counted_at.data(), keys.size(), out.data());
}

// As many lengths come out as there are reads; returns how many actions these found.
int64_t trail_take(Trail& trail, nb::handle keys_object, nb::handle what_object, nb::handle at_object,
                   nb::handle ids_object, nb::handle lengths_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    const auto count = static_cast<int64_t>(keys.size());
    Buffer<const int32_t> what(what_object, "what", "int32", {count});
    Buffer<const int64_t> at(at_object, "at", "int64", {count});
    Buffer<const int64_t> ids(ids_object, "ids", "int64", {count, trail.fields()});
    Buffer<int64_t> lengths(lengths_object, "lengths", "int64", {reads_of(what)});
    check_what(what, trail.actions());
    const Unlocked unlocked(keys.size());
    trail.take(keys.data(), what.data(), at.data(), ids.data(), keys.size(), lengths.data());
    return static_cast<int64_t>(trail.found().size()) / (2 + trail.fields());
}

void found(const Trail& trail, nb::handle out_object) {
    const int64_t words = 2 + trail.fields(), rows = static_cast<int64_t>(trail.found().size()) / words;
    Buffer<int64_t> out(out_object, "out", "int64", {rows, words});
    std::copy(trail.found().begin(), trail.found().end(), out.data());
}

template <class Kept> void pack(const Kept& kept, nb::handle keys_object, nb::handle out_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    const auto width = static_cast<int64_t>(kept.records().width());
    Buffer<uint64_t> out(out_object, "out", "uint64", {static_cast<int64_t>(keys.size()), width});
    const Unlocked unlocked(keys.size());
    kept.records().pack(keys.data(), keys.size(), out.data());
}

template <class Kept> void put(Kept& kept, nb::handle keys_object, nb::handle packed_object) {
    Buffer<const int64_t> keys(keys_object, "keys", "int64", {-1});
    const auto width = static_cast<int64_t>(kept.records().width());
    Buffer<const uint64_t> packed(packed_object, "packed", "uint64", {static_cast<int64_t>(keys.size()), width});
    const Unlocked unlocked(keys.size());
    kept.records().put(keys.data(), keys.size(), packed.data());
}

// What is kept by key, and can be copied and put.
template <class Kept> nb::class_<Kept> bind(nb::module_& module, const char* name) {
    return nb::class_<Kept>(module, name)
        .def("pack", &pack<Kept>, nb::arg("keys"), nb::arg("out"))
        .def("put", &put<Kept>, nb::arg("keys"), nb::arg("packed"))
        .def_prop_ro("keys", [](const Kept& kept) { return kept.records().keys(); })
        .def_prop_ro("width", [](const Kept& kept) { return kept.records().width(); })
        .def_prop_ro("bytes", [](const Kept& kept) { return kept.records().bytes(); });
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
    namespace nb = nanobind;
    using minutely::Tally, minutely::Trail;
    minutely::bind<Tally>(module, "Tally")
        .def(nb::init<int64_t, std::vector<double>, int32_t, bool>(), nb::arg("expire_ms"), nb::arg("half_lives_ms"),
             nb::arg("actions"), nb::arg("keeps_times"))
        .def("take", &minutely::tally_take, nb::arg("keys"), nb::arg("what"), nb::arg("at"), nb::arg("counted_at"),
             nb::arg("out"));
    minutely::bind<Trail>(module, "Trail")
        .def(nb::init<int64_t, int32_t, int32_t, int32_t>(), nb::arg("within_ms"), nb::arg("last"), nb::arg("actions"),
             nb::arg("fields"))
        .def("take", &minutely::trail_take, nb::arg("keys"), nb::arg("what"), nb::arg("at"), nb::arg("ids"),
             nb::arg("lengths"))
        .def("found", &minutely::found, nb::arg("out"));
    module.def("rates", &minutely::rates_of, nb::arg("found"), nb::arg("shares"), nb::arg("prior"), nb::arg("out"));
    module.def("ages", &minutely::ages_of, nb::arg("found"), nb::arg("at"), nb::arg("expire_ms"), nb::arg("out"));
    module.def("seen", &minutely::seen_of, nb::arg("found"), nb::arg("at"), nb::arg("within_ms"), nb::arg("out"));
}
