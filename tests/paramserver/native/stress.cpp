// Readers beside a writer: no half rows, no id missed that was there all the time, also while the index grows.
//
// usage: stress TURNS. For ThreadSanitizer, and for the release build, where the compiler does what it may.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "table.hpp"

using namespace minutely;

namespace {

std::atomic<bool> failed{false};

void check(bool ok, const char* what) {
    if (ok || failed.exchange(true)) return;
    std::fprintf(stderr, "stress: %s\n", what);
}

std::vector<int64_t> ids_of(uint64_t seed, size_t count) {
    std::vector<int64_t> ids(count);
    for (auto& id : ids) id = static_cast<int64_t>(splitmix64(seed));
    return ids;
}

constexpr uint32_t kDim = 16;
constexpr int kVersions = 100;

// What a steady row holds in a version. The first element, the row's largest, names it, so that a row of two versions
// shows, also where one gives the levels of an int8 row and another its scale; every value is exact in int8.
float value_of(int version, uint32_t element) {
    const int level = element == 0 ? 127 : (version + 7 * static_cast<int>(element)) % 127;
    return static_cast<float>(level * (version + 1));
}

void fill(std::vector<float>& rows, int version) {
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = value_of(version, static_cast<uint32_t>(i % kDim));
}

void replica(RowFormat format, const Kernels& kernels, int turns) {
    constexpr size_t kSteady = 500, kOthers = 1500;
    Options options;
    options.dim = kDim;
    options.format = format;
    options.candidates = 1;
    Table table(options, kernels);
    const auto steady = ids_of(1, kSteady);
    std::vector<float> rows(kSteady * kDim);
    fill(rows, 0);
    table.upsert(steady.data(), rows.data(), kSteady);
    std::vector<float> none(kDim, -1.0f);
    table.set_default_row(none.data(), nullptr);

    std::atomic<bool> stop{false};
    std::atomic<uint64_t> reads{0};
    const auto read = [&] {
        std::vector<float> out(kSteady * kDim);
        bool there[kSteady];
        while (!stop) {
            table.lookup(steady.data(), kSteady, out.data());
            for (size_t i = 0; i < kSteady; ++i) {
                check(out[i * kDim] >= 0, "an id was missed by lookup");
                const int version = static_cast<int>(out[i * kDim]) / 127 - 1;
                check(0 <= version && version < kVersions, "another id's row");
                for (uint32_t j = 0; j < kDim; ++j) check(out[i * kDim + j] == value_of(version, j), "half a row");
            }
            table.contains(steady.data(), kSteady, there);
            for (const bool one : there) check(one, "an id was missed by contains");
            ++reads;
        }
    };
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) readers.emplace_back(read);
    for (int turn = 0; turn < turns && !failed; ++turn) {
        fill(rows, turn % kVersions);
        table.upsert(steady.data(), rows.data(), kSteady);
        const auto others = ids_of(static_cast<uint64_t>(turn) + 2, kOthers);
        const std::vector<float> other_rows(kOthers * kDim, 127.0f * (kVersions + 1));  // no steady row's
        table.upsert(others.data(), other_rows.data(), kOthers);
        if (turn % 8 == 5) table.reserve(static_cast<uint64_t>(turn) * kOthers);
        if (turn % 4 == 3) check(table.erase(others.data(), kOthers) == kOthers, "erase lost rows");
    }
    stop = true;
    for (auto& reader : readers) reader.join();
    check(reads > 0, "no reader got through");
}

// Training on several threads, with a reader that must wait for whole batches.
void training(const Kernels& kernels, int turns) {
    constexpr size_t kBatch = 4096;
    Options options;
    options.dim = kDim;
    options.threads = 3;
    options.candidates = 1;
    options.optimizer.kind = OptimizerKind::kSgd;
    options.optimizer.learning_rate = -1.0f;
    options.expire_after_seconds = 5;
    Table table(options, kernels);
    std::atomic<bool> stop{false};
    const auto ids = ids_of(1, kBatch);
    std::vector<float> out(kBatch * kDim);
    table.lookup_or_insert(ids.data(), kBatch, 0, out.data());
    std::thread reader([&] {
        // So few ids are looked up at one moment.
        constexpr size_t kFew = 1000;
        std::vector<float> rows(kFew * kDim);
        while (!stop) {
            table.lookup(ids.data(), kFew, rows.data());
            for (const float value : rows) check(value == rows[0], "a batch was half applied");
        }
    });
    const std::vector<float> gradients(kBatch * kDim, 1.0f);
    for (int turn = 0; turn < turns && !failed; ++turn) {
        table.apply(ids.data(), gradients.data(), kBatch, turn * 1000);
        table.lookup_or_insert(ids.data(), kBatch, turn * 1000, out.data());
        for (const float value : out) check(value == static_cast<float>(turn + 1), "a gradient was lost");
        check(table.expire(turn * 1000, 4096) == 0, "a row that is in use expired");
        check(table.seal().ids.size() == kBatch, "a changed row was not sealed");
    }
    stop = true;
    reader.join();
}

}  // namespace

int main(int count, char** arguments) {
    const int turns = count > 1 ? std::atoi(arguments[1]) : 100;
    for (const Kernels* kernels : available_kernels()) {
        for (const RowFormat format : {RowFormat::kFloat32, RowFormat::kInt8, RowFormat::kTrain}) {
            replica(format, *kernels, turns);
        }
        training(*kernels, turns);
        std::printf("%s: %s\n", kernels->name, failed ? "failed" : "passed");
    }
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
