// A table at the limits of its index and of its memory.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <pthread.h>

#include "table.hpp"

using namespace minutely;

namespace {

thread_local uint64_t locks = 0;
bool failed = false;

void check(bool ok, const char* what) {
    if (ok) return;
    failed = true;
    std::fprintf(stderr, "limits: %s\n", what);
}

// Readers take no mutex for ids in the overflow, nor for any other while there is one.
void overflow_without_locks() {
    Options options;
    options.dim = 4;
    options.format = RowFormat::kFloat32;
    Table table(options, *find_kernels(""));
    const Hash hash(hash_seed(table_seed(options.seed, options.name), options.secret));
    // All in one pair of buckets, as long as there are no more than 256.
    std::vector<int64_t> sharing, absent;
    uint64_t state = 1;
    while (sharing.size() < 200) {
        const auto id = static_cast<int64_t>(splitmix64(state));
        const Hashes hashes = hash.both(static_cast<uint64_t>(id));
        if (hashes.first >> 56 == 0 && hashes.second >> 56 == 0) sharing.push_back(id);
        absent.push_back(static_cast<int64_t>(splitmix64(state)));
    }
    absent.resize(5000);
    std::vector<float> values, out(absent.size() * 4);
    for (size_t i = 0; i < sharing.size(); ++i) values.insert(values.end(), 4, static_cast<float>(i + 1));
    table.upsert(sharing.data(), values.data(), sharing.size());
    const uint64_t there = table.stats().overflow;
    check(there > 100, "ids that share both buckets did not go to the overflow");

    const uint64_t before = locks;
    table.lookup(absent.data(), absent.size(), out.data());
    check(locks == before, "a lookup of missing ids took a mutex");
    for (const float value : out) check(value == 0, "a missing id has values");
    out.resize(values.size());
    table.lookup(sharing.data(), sharing.size(), out.data());
    check(locks == before, "a lookup of ids in the overflow took a mutex");
    check(out == values, "an id in the overflow has other values");
    table.size();
    check(locks == before + 1, "mutexes are not counted");

    // Every other one goes; the others stay where they are found.
    std::vector<int64_t> going;
    for (size_t i = 0; i < sharing.size(); i += 2) going.push_back(sharing[i]);
    check(table.erase(going.data(), going.size()) == going.size(), "erase missed ids");
    table.lookup(sharing.data(), sharing.size(), out.data());
    for (size_t i = 0; i < out.size(); ++i) check(out[i] == (i / 4 % 2 == 0 ? 0 : values[i]), "erase took others' ids");
}

std::vector<int64_t> numbers(int64_t from, int64_t count) {
    std::vector<int64_t> ids;
    for (int64_t id = from; id < from + count; ++id) ids.push_back(id);
    return ids;
}

// A training table for which there is no more memory, or number, lets rows go; it does not throw.
void full_of_training() {
    Options options;
    options.dim = 4;
    constexpr uint64_t kRoom = 6000;
    Table table(options, *find_kernels(""), true, kRoom * (16 + sizeof(Slot)));
    std::vector<float> out(3000 * 4);
    uint64_t gone = 0;
    for (int64_t batch = 0; batch < 20; ++batch) {
        const auto ids = numbers(batch * 3000, 3000);
        table.lookup_or_insert(ids.data(), ids.size(), batch * 1000, out.data());
        check(table.size() <= kRoom, "more rows than there is room for");
        bool there[3000];
        table.contains(ids.data(), ids.size(), there);
        for (const bool one : there) check(one, "the newest rows went");
        gone += table.seal().expired.size();
    }
    const Stats stats = table.stats();
    check(stats.evicted > 50'000 && stats.evicted == stats.inserted - stats.live, "evicted rows are not counted");
    check(gone == stats.evicted, "evicted rows are not told");
}

// A replica refuses what does not fit, says so, and goes on with what it has.
void full_of_rows() {
    Options options;
    options.dim = 4;
    options.format = RowFormat::kFloat32;
    Table table(options, *find_kernels(""), true, 1000 * (16 + sizeof(Slot)));
    const auto ids = numbers(1, 1001);
    std::vector<float> values, out(1000 * 4);
    for (const int64_t id : ids) values.insert(values.end(), 4, static_cast<float>(id));
    std::string said;
    try {
        table.upsert(ids.data(), values.data(), ids.size());
    } catch (const std::length_error& error) {
        said = error.what();
    }
    check(said == "a table of this width holds at most 1000 rows on this machine", said.c_str());
    check(table.size() == 1000, "rows that fit were refused");
    check(table.erase(ids.data(), 1) == 1, "a full table does not erase");
    table.upsert(ids.data() + 1000, values.data() + 4000, 1);
    table.lookup(ids.data() + 1, 1000, out.data());
    check(std::vector<float>(values.begin() + 4, values.end()) == out, "a full table has other values");
}

// A sweep that looks at no slot ends where one does that looks, whether the index is growing or not.
void skips_as_it_sweeps() {
    Index index(1, 1 << 20);
    uint64_t state = 1, position = 0, rounds = 0, growing = 0;
    for (uint32_t row = 1; row <= 50000; ++row) {
        index.insert(Slot{splitmix64(state), row, 0});
        growing += index.changing();
        const uint64_t buckets = 1 + row % 40;
        const uint64_t skipped = index.skip(position, buckets);
        position = index.sweep(position, buckets, [](const Slot*) {});
        check(skipped == position, "a sweep without a look ends elsewhere");
        rounds += position == 0;
    }
    check(rounds > 100 && growing > 100 && growing < 50000, "the index did not grow, or was swept too seldom");
}

}  // namespace

extern "C" int __real_pthread_mutex_lock(pthread_mutex_t* mutex);
extern "C" int __wrap_pthread_mutex_lock(pthread_mutex_t* mutex) {
    ++locks;
    return __real_pthread_mutex_lock(mutex);
}

int main() {
    overflow_without_locks();
    full_of_training();
    full_of_rows();
    skips_as_it_sweeps();
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
