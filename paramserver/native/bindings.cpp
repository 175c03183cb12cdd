// The Python module paramserver._native. Every batched call checks its buffers, then lets go of the interpreter's lock.
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <memory>

#include "bindings.hpp"
#include "checksum.hpp"

namespace minutely {

namespace {

nb::tuple to_tuple(Rows&& rows, size_t dim, size_t state_dim) {
    const size_t n = rows.ids.size(), m = rows.expired.size();
    return nb::make_tuple(to_numpy(std::move(rows.ids), {n}), to_numpy(std::move(rows.embeddings), {n, dim}),
                          to_numpy(std::move(rows.state), {n, state_dim}),
                          to_numpy(std::move(rows.last_seen_seconds), {n}), to_numpy(std::move(rows.counts), {n}),
                          to_numpy(std::move(rows.expired), {m}));
}

template <class E>
E choose(const std::string& what, const std::string& value, std::initializer_list<std::pair<const char*, E>> all) {
    std::string names;
    for (const auto& [name, choice] : all) {
        if (value == name) return choice;
        names += names.empty() ? name : std::string(", ") + name;
    }
    throw nb::value_error((what + ": must be one of " + names + ", got \"" + value + "\"").c_str());
}

std::unique_ptr<Table> make_table(uint32_t dim, const std::string& optimizer,
                                  const std::vector<float>& optimizer_values, const std::string& initializer, float a,
                                  float b, uint64_t seed, const std::string& name, uint32_t expire_after_seconds,
                                  uint32_t admit_after, uint32_t candidates, uint64_t secret, uint64_t max_rows,
                                  const std::string& row_format, const std::string& kernels_name) {
    Options options;
    options.dim = dim;
    options.optimizer.kind = choose<OptimizerKind>("optimizer", optimizer,
                                                   {{"sgd", OptimizerKind::kSgd},
                                                    {"row_adagrad", OptimizerKind::kRowAdagrad},
                                                    {"adagrad", OptimizerKind::kAdagrad},
                                                    {"adam", OptimizerKind::kAdam},
                                                    {"ftrl", OptimizerKind::kFtrl},
                                                    {"momentum", OptimizerKind::kMomentum}});
    if (optimizer_values.size() != 9) throw nb::value_error("optimizer_values: must hold 9 numbers");
    float* const fields[] = {&options.optimizer.learning_rate,
                             &options.optimizer.clip,
                             &options.optimizer.eps,
                             &options.optimizer.initial_accumulator,
                             &options.optimizer.beta1,
                             &options.optimizer.beta2,
                             &options.optimizer.beta,
                             &options.optimizer.l1,
                             &options.optimizer.l2};
    for (size_t i = 0; i < optimizer_values.size(); ++i) *fields[i] = optimizer_values[i];
    options.initializer = {choose<InitializerKind>("initializer", initializer,
                                                   {{"zeros", InitializerKind::kZeros},
                                                    {"constant", InitializerKind::kConstant},
                                                    {"uniform", InitializerKind::kUniform},
                                                    {"normal", InitializerKind::kNormal}}),
                           a, b};
    options.seed = seed;
    options.secret = secret;
    options.max_rows = max_rows;
    options.name = name;
    options.expire_after_seconds = expire_after_seconds;
    options.admit_after = admit_after;
    options.candidates = candidates;
    options.format = choose<RowFormat>("row_format", row_format,
                                       {{"train", RowFormat::kTrain},
                                        {"float32", RowFormat::kFloat32},
                                        {"float16", RowFormat::kFloat16},
                                        {"int8", RowFormat::kInt8}});
    const Kernels* kernels = find_kernels(kernels_name);
    if (kernels == nullptr) {
        std::string names;
        for (const Kernels* set : available_kernels()) names += std::string(names.empty() ? "" : ", ") + set->name;
        throw nb::value_error(("kernels: this machine has " + names + ", not \"" + kernels_name + "\"").c_str());
    }
    return std::make_unique<Table>(options, *kernels);
}

void lookup(Table& table, nb::handle ids, nb::handle out) {
    const Ids id_buffer(ids, "lookup: ids", "int64", {kAny});
    const Buffer<float> out_buffer(out, "lookup: out", "float32",
                                   {static_cast<int64_t>(id_buffer.size()), table.dim()});
    const nb::gil_scoped_release released;
    table.lookup(id_buffer.data(), id_buffer.size(), out_buffer.data());
}

void lookup_or_insert(Table& table, nb::handle ids, int64_t now_ms, nb::handle out) {
    check_trains(table, "lookup_or_insert");
    check_time(now_ms);
    const Ids id_buffer(ids, "lookup_or_insert: ids", "int64", {kAny});
    const Buffer<float> out_buffer(out, "lookup_or_insert: out", "float32",
                                   {static_cast<int64_t>(id_buffer.size()), table.dim()});
    const nb::gil_scoped_release released;
    table.lookup_or_insert(id_buffer.data(), id_buffer.size(), now_ms, out_buffer.data());
}

void apply(Table& table, nb::handle ids, nb::handle gradients, int64_t now_ms) {
    check_trains(table, "apply");
    check_time(now_ms);
    const Ids id_buffer(ids, "apply: ids", "int64", {kAny});
    const Floats gradient_buffer(gradients, "apply: gradients", "float32",
                                 {static_cast<int64_t>(id_buffer.size()), table.dim()});
    const nb::gil_scoped_release released;
    table.apply(id_buffer.data(), gradient_buffer.data(), id_buffer.size(), now_ms);
}

void contains(Table& table, nb::handle ids, nb::handle out) {
    const Ids id_buffer(ids, "contains: ids", "int64", {kAny});
    const Buffer<bool> out_buffer(out, "contains: out", "bool", {static_cast<int64_t>(id_buffer.size())});
    const nb::gil_scoped_release released;
    table.contains(id_buffer.data(), id_buffer.size(), out_buffer.data());
}

void upsert(Table& table, nb::handle ids, nb::handle embeddings) {
    const Ids id_buffer(ids, "upsert: ids", "int64", {kAny});
    const Floats rows(embeddings, "upsert: embeddings", "float32",
                      {static_cast<int64_t>(id_buffer.size()), table.dim()});
    const nb::gil_scoped_release released;
    table.upsert(id_buffer.data(), rows.data(), id_buffer.size());
}

uint64_t erase(Table& table, nb::handle ids) {
    const Ids id_buffer(ids, "erase: ids", "int64", {kAny});
    const nb::gil_scoped_release released;
    return table.erase(id_buffer.data(), id_buffer.size());
}

uint64_t expire(Table& table, int64_t now_ms, uint64_t budget) {
    check_trains(table, "expire");
    check_time(now_ms);
    const nb::gil_scoped_release released;
    return table.expire(now_ms, budget);
}

nb::tuple seal(Table& table) {
    check_trains(table, "seal");
    Rows rows;
    {
        const nb::gil_scoped_release released;
        rows = table.seal();
    }
    return to_tuple(std::move(rows), table.dim(), table.state_dim());
}

nb::tuple export_rows(Table& table) {
    Rows rows;
    {
        const nb::gil_scoped_release released;
        rows = table.export_rows();
    }
    return to_tuple(std::move(rows), table.dim(), table.state_dim());
}

nb::object ids_of(Table& table) {
    std::vector<int64_t> ids;
    {
        const nb::gil_scoped_release released;
        ids = table.ids();
    }
    const size_t n = ids.size();
    return to_numpy(std::move(ids), {n});
}

void restore(Table& table, nb::handle ids, nb::handle embeddings, nb::handle state, nb::handle last_seen_seconds,
             nb::handle counts, nb::handle expired, nb::handle default_embedding, nb::handle default_state) {
    check_trains(table, "restore");
    const Ids id_buffer(ids, "restore: ids", "int64", {kAny});
    const auto n = static_cast<int64_t>(id_buffer.size());
    const Floats embedding_buffer(embeddings, "restore: embeddings", "float32", {n, table.dim()});
    const Floats state_buffer(state, "restore: state", "float32", {n, table.state_dim()});
    const Buffer<const uint32_t> seen_buffer(last_seen_seconds, "restore: last_seen_seconds", "uint32", {n});
    const Buffer<const uint32_t> count_buffer(counts, "restore: counts", "uint32", {n});
    const Ids expired_buffer(expired, "restore: expired", "int64", {kAny});
    const Floats default_buffer(default_embedding, "restore: default_embedding", "float32", {table.dim()});
    const Floats default_state_buffer(default_state, "restore: default_state", "float32", {table.state_dim()});
    const nb::gil_scoped_release released;
    table.restore({id_buffer.size(), id_buffer.data(), embedding_buffer.data(), state_buffer.data(), seen_buffer.data(),
                   count_buffer.data(), expired_buffer.size(), expired_buffer.data()});
    table.set_default_row(default_buffer.data(), table.state_dim() == 0 ? nullptr : default_state_buffer.data());
}

nb::tuple default_row(Table& table) {
    std::vector<float> embedding(table.dim()), state(table.state_dim());
    {
        const nb::gil_scoped_release released;
        table.default_row(embedding.data(), state.data());
    }
    const size_t dim = embedding.size(), state_dim = state.size();
    return nb::make_tuple(to_numpy(std::move(embedding), {dim}), to_numpy(std::move(state), {state_dim}));
}

void set_default_row(Table& table, nb::handle embedding, nb::handle state) {
    const Floats values(embedding, "set_default_row: embedding", "float32", {table.dim()});
    if (state.is_none()) {
        const nb::gil_scoped_release released;
        return table.set_default_row(values.data(), nullptr);
    }
    const Floats state_values(state, "set_default_row: state", "float32", {table.state_dim()});
    const nb::gil_scoped_release released;
    table.set_default_row(values.data(), table.state_dim() == 0 ? nullptr : state_values.data());
}

void apply_default_row(Table& table, nb::handle gradient) {
    check_trains(table, "apply_default_row");
    const Floats values(gradient, "apply_default_row: gradient", "float32", {table.dim()});
    const nb::gil_scoped_release released;
    table.apply_default_row(values.data());
}

nb::dict stats(Table& table) {
    Stats now;
    {
        const nb::gil_scoped_release released;
        now = table.stats();
    }
    nb::dict all;
    all["live"] = now.live;
    all["inserted"] = now.inserted;
    all["admitted"] = now.admitted;
    all["expired"] = now.expired;
    all["evicted"] = now.evicted;
    all["erased"] = now.erased;
    all["rejected_gradients"] = now.rejected_gradients;
    all["rejected_ids"] = nb::tuple(nb::cast(now.rejected_ids));
    all["rowless_gradients"] = now.rowless_gradients;
    all["candidates"] = now.candidates;
    all["candidates_dropped"] = now.candidates_dropped;
    all["overflow"] = now.overflow;
    all["index_bytes"] = now.index_bytes;
    all["row_bytes"] = now.row_bytes;
    return all;
}

nb::tuple halves(uint128 value) {
    return nb::make_tuple(static_cast<uint64_t>(value), static_cast<uint64_t>(value >> 64));
}

void checksum_set(Checksum& checksum, nb::handle ids, nb::handle values) {
    const Ids id_buffer(ids, "set: ids", "int64", {kAny});
    const Floats rows(values, "set: values", "float32", {static_cast<int64_t>(id_buffer.size()), checksum.dim()});
    const nb::gil_scoped_release released;
    checksum.set(id_buffer.data(), rows.data(), id_buffer.size());
}

void checksum_remove(Checksum& checksum, nb::handle ids) {
    const Ids id_buffer(ids, "remove: ids", "int64", {kAny});
    const nb::gil_scoped_release released;
    checksum.remove(id_buffer.data(), id_buffer.size());
}

nb::tuple checksum_of(nb::handle ids, nb::handle values) {
    const Ids id_buffer(ids, "checksum_of: ids", "int64", {kAny});
    const auto count = static_cast<int64_t>(id_buffer.size());
    const Floats rows(values, "checksum_of: values", "float32", {count, kAny});
    uint128 sum = 0;
    if (count > 0) {
        const nb::gil_scoped_release released;
        sum = rows_sum(id_buffer.data(), rows.data(), id_buffer.size(), rows.size() / id_buffer.size());
    }
    return halves(sum);
}

}  // namespace

}  // namespace minutely

NB_MODULE(_native, module) {
    using namespace minutely;
    // A table holds no Python object, so none can be in a cycle. What nanobind finds at exit belongs to daemon threads
    // that are still in a call, such as a replica's sender while brokers are away: the interpreter never takes their
    // frames down.
    nb::set_leak_warnings(false);
    nb::class_<Table>(module, "NativeTable")
        .def(nb::new_(&make_table), nb::kw_only(), nb::arg("dim"), nb::arg("optimizer"), nb::arg("optimizer_values"),
             nb::arg("initializer"), nb::arg("a"), nb::arg("b"), nb::arg("seed"), nb::arg("name"),
             nb::arg("expire_after_seconds"), nb::arg("admit_after"), nb::arg("candidates"), nb::arg("secret"),
             nb::arg("max_rows"), nb::arg("row_format"), nb::arg("kernels"))
        .def("lookup", &lookup, nb::arg("ids"), nb::arg("out"))
        .def("lookup_or_insert", &lookup_or_insert, nb::arg("ids"), nb::arg("now_ms"), nb::arg("out"))
        .def("apply", &apply, nb::arg("ids"), nb::arg("gradients"), nb::arg("now_ms"))
        .def("apply_default_row", &apply_default_row, nb::arg("gradient"))
        .def("contains", &contains, nb::arg("ids"), nb::arg("out"))
        .def("upsert", &upsert, nb::arg("ids"), nb::arg("embeddings"))
        .def("erase", &erase, nb::arg("ids"))
        .def("expire", &expire, nb::arg("now_ms"), nb::arg("budget"))
        .def("seal", &seal)
        .def("export", &export_rows)
        .def("ids", &ids_of)
        .def("restore", &restore, nb::arg("ids"), nb::arg("embeddings"), nb::arg("state"), nb::arg("last_seen_seconds"),
             nb::arg("counts"), nb::arg("expired"), nb::arg("default_embedding"), nb::arg("default_state"))
        .def("reserve", &Table::reserve, nb::arg("rows"), nb::call_guard<nb::gil_scoped_release>())
        .def("default_row", &default_row)
        .def("set_default_row", &set_default_row, nb::arg("embedding"), nb::arg("state").none())
        .def("size", &Table::size, nb::call_guard<nb::gil_scoped_release>())
        .def("stats", &stats)
        .def_prop_ro("dim", &Table::dim)
        .def_prop_ro("state_dim", &Table::state_dim)
        .def_prop_ro("kernels", [](const Table& table) { return table.kernels_name(); });
    bind_tables(module);
    nb::class_<Checksum>(module, "Checksum")
        .def(nb::init<uint32_t>(), nb::arg("dim"))
        .def("set", &checksum_set, nb::arg("ids"), nb::arg("values"))
        .def("remove", &checksum_remove, nb::arg("ids"))
        .def("value", [](const Checksum& checksum) { return halves(checksum.value()); });
    module.def("checksum_of", &checksum_of, nb::arg("ids"), nb::arg("values"));
    module.def("available_kernels", [] {
        std::vector<std::string> names;
        for (const Kernels* set : available_kernels()) names.emplace_back(set->name);
        return names;
    });
    // Where the index looks for ids: for tests that craft collisions.
    module.def(
        "bucket_hashes",
        [](uint64_t seed, const std::string& name, uint64_t secret, int64_t id) {
            const Hashes hashes = Hash(hash_seed(table_seed(seed, name), secret)).both(static_cast<uint64_t>(id));
            return nb::make_tuple(hashes.first, hashes.second);
        },
        nb::arg("seed"), nb::arg("name"), nb::arg("secret"), nb::arg("id"));
}
