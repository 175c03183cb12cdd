// What a table is made with, as the C++ side keeps it. Validated in bindings.cpp, documented in table.py.
#pragma once

#include <cstdint>
#include <string>

namespace minutely {

enum class OptimizerKind : uint32_t { kSgd, kRowAdagrad, kAdagrad, kAdam, kFtrl, kMomentum };
enum class InitializerKind : uint32_t { kZeros, kConstant, kUniform, kNormal };
enum class RowFormat : uint32_t { kTrain, kFloat32, kFloat16, kInt8 };

struct Optimizer {
    OptimizerKind kind = OptimizerKind::kRowAdagrad;
    float learning_rate = 0.01f;
    float clip = 0.0f;  // 0: no clipping
    float eps = 1e-10f;
    float initial_accumulator = 0.0f;
    float beta1 = 0.9f;  // Adam; the momentum of Momentum
    float beta2 = 0.999f;
    float beta = 1.0f;  // FTRL
    float l1 = 0.0f;
    float l2 = 0.0f;

    // Floats of state behind the embedding in a row.
    uint32_t row_state(uint32_t dim) const {
        switch (kind) {
        case OptimizerKind::kSgd:
        case OptimizerKind::kRowAdagrad:
            return 0;
        case OptimizerKind::kAdagrad:
        case OptimizerKind::kMomentum:
            return dim;
        case OptimizerKind::kAdam:
        case OptimizerKind::kFtrl:
            return 2 * dim;
        }
        return 0;
    }
    // One more float of state in the slot, as the last column of the exported state.
    bool slot_state() const { return kind == OptimizerKind::kRowAdagrad || kind == OptimizerKind::kAdam; }
    uint32_t state_dim(uint32_t dim) const { return row_state(dim) + (slot_state() ? 1 : 0); }
};

struct Initializer {
    InitializerKind kind = InitializerKind::kZeros;
    float a = 0.0f;  // the constant, the low end, or the mean
    float b = 0.0f;  // the high end or the standard deviation
};

struct Options {
    uint32_t dim = 0;
    Optimizer optimizer;
    Initializer initializer;
    uint64_t seed = 0;
    uint64_t secret = 0;    // of the hash, so that nobody outside can choose ids that collide
    uint64_t max_rows = 0;  // 0: as many as the machine can hold
    std::string name;
    uint32_t expire_after_seconds = 0;  // 0: never
    uint32_t admit_after = 1;
    uint32_t candidates = 0;
    RowFormat format = RowFormat::kTrain;
};

}  // namespace minutely
