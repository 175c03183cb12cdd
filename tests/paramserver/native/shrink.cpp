// A replica that grows and shrinks against a map, with readers beside: rows that stay are never missed, never
// another's, and what is left at the end is right. usage: shrink ROUNDS
#include <atomic>
#include <cstdio>
#include <map>
#include <thread>
#include <vector>

#include "table.hpp"

using namespace minutely;

namespace {

constexpr uint32_t kDim = 4;
constexpr size_t kSteady = 2000, kMany = 60'000;
std::atomic<bool> failed{false};

void check(bool ok, const char* what) {
    if (ok || failed.exchange(true)) return;
    std::fprintf(stderr, "shrink: %s\n", what);
}

float value_of(int64_t id) { return static_cast<float>(static_cast<uint64_t>(id) >> 44); }

void put(Table& table, const std::vector<int64_t>& ids) {
    std::vector<float> rows;
    for (const int64_t id : ids) rows.insert(rows.end(), kDim, value_of(id));
    table.upsert(ids.data(), rows.data(), ids.size());
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 5;
    Options options;
    options.dim = kDim;
    options.format = RowFormat::kFloat32;
    options.candidates = 1;
    Table table(options, *find_kernels(""));
    uint64_t seed = 1;
    std::vector<int64_t> steady(kSteady);
    for (auto& id : steady) id = static_cast<int64_t>(splitmix64(seed));
    steady[0] = 0;
    std::map<int64_t, float> expected;
    // Half of the steady ids come when the table is large, so that they have to move.
    std::vector<int64_t> late(steady.begin() + kSteady / 2, steady.end());
    steady.resize(kSteady / 2);
    put(table, steady);
    std::atomic<bool> stop{false};
    const auto read = [&] {
        std::vector<float> out(steady.size() * kDim);
        while (!stop) {
            table.lookup(steady.data(), steady.size(), out.data());
            for (size_t i = 0; i < out.size(); ++i)
                check(out[i] == value_of(steady[i / kDim]), "a row was missed or torn");
        }
    };
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) readers.emplace_back(read);
    uint64_t most_index = 0, most_rows = 0;
    for (int round = 0; round < rounds && !failed; ++round) {
        std::vector<int64_t> many(kMany);
        for (auto& id : many) id = static_cast<int64_t>(splitmix64(seed));
        put(table, many);
        if (round == 0) put(table, late);
        most_index = std::max(most_index, table.stats().index_bytes);
        most_rows = std::max(most_rows, table.stats().row_bytes);
        // In odd rounds the last ids stay, in others growth meets a shrink that is under way.
        const size_t going = kMany - (round % 2 == 1 ? 100 : 0);
        for (size_t from = 0; from < going; from += 500) {
            const size_t n = std::min<size_t>(500, going - from);
            check(table.erase(many.data() + from, n) == n, "erase lost rows");
            if (from % 7000 == 6500) {
                std::vector<int64_t> again(many.begin() + static_cast<std::ptrdiff_t>(from),
                                           many.begin() + static_cast<std::ptrdiff_t>(from + 500));
                put(table, again);
                check(table.erase(again.data(), again.size()) == again.size(), "erase lost rows that came back");
            }
        }
        for (size_t i = going; i < kMany; ++i) expected[many[i]] = value_of(many[i]);
    }
    stop = true;
    for (auto& reader : readers) reader.join();
    for (const int64_t id : steady) expected[id] = value_of(id);
    for (const int64_t id : late) expected[id] = value_of(id);
    // Nothing to erase, so this only tidies up.
    const int64_t nobody = 1;
    for (int i = 0; i < 200; ++i) table.erase(&nobody, 1);
    const Rows all = table.export_rows();
    check(all.ids.size() == expected.size(), "another number of rows");
    size_t at = 0;
    for (const auto& [id, value] : expected) {
        check(at < all.ids.size() && all.ids[at] == id && all.embeddings[at * kDim + 3] == value, "rows differ");
        ++at;
    }
    check(table.stats().index_bytes * 4 < most_index, "the index did not shrink");
    std::printf("index %lu -> %lu, rows %lu -> %lu\n", most_index, table.stats().index_bytes, most_rows,
                table.stats().row_bytes);
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
