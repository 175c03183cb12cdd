// Several tables in one call: a model has twenty, a minute of sparse traffic a few ids for each.
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.hpp"

namespace minutely {

namespace {

// Where the ids of each table end, those of one table after those of another.
using Ends = std::vector<size_t>;

class Tables {
  public:
    explicit Tables(const nb::list& tables) {
        for (nb::handle table : tables) {
            kept_.push_back(nb::borrow(table));
            tables_.push_back(nb::cast<Table*>(table));
        }
        for (const Table* table : tables_) {
            if (table->dim() == dim()) continue;
            throw nb::value_error(("tables: rows of " + std::to_string(dim()) + " and of " +
                                   std::to_string(table->dim()) + " values; allowed: of one length")
                                      .c_str());
        }
    }

    uint32_t dim() const { return tables_.empty() ? 0 : tables_.front()->dim(); }

    void check_ends(const char* what, const Ends& ends, size_t ids) const {
        const bool fit = ends.size() == tables_.size() && std::is_sorted(ends.begin(), ends.end()) &&
                         (ends.empty() ? 0 : ends.back()) == ids;
        if (fit) return;
        throw nb::value_error((std::string(what) + ": ends must ascend to the number of ids, " + std::to_string(ids) +
                               ", one for each of " + std::to_string(tables_.size()) + " tables")
                                  .c_str());
    }

    void check_train(const char* operation) const {
        for (const Table* table : tables_) check_trains(*table, operation);
    }

    // Calls then(table, from, count) for the ids of each table.
    template <class Then> void each(const Ends& ends, Then then) const {
        size_t from = 0;
        for (size_t i = 0; i < tables_.size(); ++i) {
            then(*tables_[i], from, ends[i] - from);
            from = ends[i];
        }
    }

    const std::vector<Table*>& all() const { return tables_; }

  private:
    std::vector<nb::object> kept_;
    std::vector<Table*> tables_;
};

// The ids and rows of a batch, and whose they are.
template <class T> struct Batched {
    Batched(const Tables& tables, const char* what, nb::handle ids, const Ends& of, nb::handle rows,
            const char* rows_what)
        : id_buffer(ids, what, "int64", {kAny}),
          row_buffer(rows, rows_what, "float32", {static_cast<int64_t>(id_buffer.size()), width(tables)}), ends(of) {
        tables.check_ends(what, ends, id_buffer.size());
    }
    static int64_t width(const Tables& tables) { return tables.all().empty() ? kAny : tables.dim(); }

    Ids id_buffer;
    Buffer<T> row_buffer;
    const Ends& ends;
};

void lookup(const Tables& tables, nb::handle ids, const Ends& ends, nb::handle out) {
    const Batched<float> batch(tables, "lookup: ids", ids, ends, out, "lookup: out");
    const nb::gil_scoped_release released;
    tables.each(ends, [&](Table& table, size_t from, size_t count) {
        table.lookup(batch.id_buffer.data() + from, count, batch.row_buffer.data() + from * table.dim());
    });
}

void lookup_or_insert(const Tables& tables, nb::handle ids, const Ends& ends, int64_t now_ms, nb::handle out) {
    tables.check_train("lookup_or_insert");
    check_time(now_ms);
    const Batched<float> batch(tables, "lookup_or_insert: ids", ids, ends, out, "lookup_or_insert: out");
    const nb::gil_scoped_release released;
    tables.each(ends, [&](Table& table, size_t from, size_t count) {
        table.lookup_or_insert(batch.id_buffer.data() + from, count, now_ms,
                               batch.row_buffer.data() + from * table.dim());
    });
}

void apply(const Tables& tables, nb::handle ids, const Ends& ends, nb::handle gradients, int64_t now_ms) {
    tables.check_train("apply");
    check_time(now_ms);
    const Batched<const float> batch(tables, "apply: ids", ids, ends, gradients, "apply: gradients");
    const nb::gil_scoped_release released;
    tables.each(ends, [&](Table& table, size_t from, size_t count) {
        table.apply(batch.id_buffer.data() + from, batch.row_buffer.data() + from * table.dim(), count, now_ms);
    });
}

uint64_t expire(const Tables& tables, int64_t now_ms, uint64_t budget) {
    tables.check_train("expire");
    check_time(now_ms);
    const nb::gil_scoped_release released;
    uint64_t expired = 0;
    for (Table* table : tables.all()) expired += table->expire(now_ms, budget);
    return expired;
}

// The rows of all tables end to end, where those of each and its expired ids end, and the default rows. Times and
// counts of all as `Table::seal` has them.
nb::tuple seal(const Tables& tables) {
    tables.check_train("seal");
    Rows rows;
    const size_t dim = tables.dim(), count = tables.all().size();
    std::vector<float> defaults(count * dim), default_states;
    Ends ends, expired_ends;
    {
        const nb::gil_scoped_release released;
        size_t most = 0, most_state = 0;
        for (Table* table : tables.all()) {
            const size_t more = table->unsealed();
            most += more;
            most_state += more * table->state_dim();
        }
        rows.ids.reserve(most);
        rows.embeddings.reserve(most * dim);
        rows.state.reserve(most_state);
        rows.last_seen_seconds.reserve(most);
        rows.counts.reserve(most);
        for (size_t i = 0; i < count; ++i) {
            Table& table = *tables.all()[i];
            table.seal(rows);
            ends.push_back(rows.ids.size());
            expired_ends.push_back(rows.expired.size());
            const size_t before = default_states.size();
            default_states.resize(before + table.state_dim());
            table.default_row(defaults.data() + i * dim, default_states.data() + before);
        }
    }
    const size_t n = rows.ids.size(), states = rows.state.size(), left = rows.expired.size(),
                 default_count = default_states.size();
    return nb::make_tuple(to_numpy(std::move(rows.ids), {n}), to_numpy(std::move(rows.embeddings), {n, dim}),
                          to_numpy(std::move(rows.state), {states}), to_numpy(std::move(rows.last_seen_seconds), {n}),
                          to_numpy(std::move(rows.counts), {n}), to_numpy(std::move(rows.expired), {left}),
                          to_numpy(std::move(defaults), {count, dim}),
                          to_numpy(std::move(default_states), {default_count}), ends, expired_ends);
}

}  // namespace

void bind_tables(nb::module_& module) {
    nb::class_<Tables>(module, "NativeTables")
        .def(nb::init<nb::list>(), nb::arg("tables"))
        .def("lookup", &lookup, nb::arg("ids"), nb::arg("ends"), nb::arg("out"))
        .def("lookup_or_insert", &lookup_or_insert, nb::arg("ids"), nb::arg("ends"), nb::arg("now_ms"), nb::arg("out"))
        .def("apply", &apply, nb::arg("ids"), nb::arg("ends"), nb::arg("gradients"), nb::arg("now_ms"))
        .def("expire", &expire, nb::arg("now_ms"), nb::arg("budget"))
        .def("seal", &seal);
}

}  // namespace minutely
