// The stress of training: whole batches, seen by a reader beside it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "table.hpp"

namespace minutely {

// Training, with a reader that must wait for whole batches.
inline bool training(const Kernels& kernels, std::chrono::steady_clock::time_point until) {
    constexpr uint32_t kDim = 8;
    constexpr size_t kBatch = 4096;
    Options options;
    options.dim = kDim;
    options.candidates = 1;
    options.optimizer.kind = OptimizerKind::kSgd;
    options.optimizer.learning_rate = -1.0f;
    options.expire_after_seconds = 5;
    Table table(options, kernels);
    std::atomic<bool> stop{false}, failed{false};
    const auto check = [&](bool ok, const char* what) {
        if (ok || failed.exchange(true)) return;
        std::fprintf(stderr, "stress: %s\n", what);
    };
    std::vector<int64_t> ids(kBatch);
    uint64_t state = 1;
    for (auto& id : ids) id = static_cast<int64_t>(splitmix64(state));
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
    for (int turn = 0; (turn < 2 || std::chrono::steady_clock::now() < until) && !failed; ++turn) {
        table.apply(ids.data(), gradients.data(), kBatch, turn * 1000);
        table.lookup_or_insert(ids.data(), kBatch, turn * 1000, out.data());
        for (const float value : out) check(value == static_cast<float>(turn + 1), "a gradient was lost");
        check(table.expire(turn * 1000, 4096) == 0, "a row that is in use expired");
        check(table.seal().ids.size() == kBatch, "a changed row was not sealed");
    }
    stop = true;
    reader.join();
    return !failed;
}

}  // namespace minutely
