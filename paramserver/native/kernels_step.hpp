// One optimizer step on one row. Every instruction set gives the same bits: no contraction to fused multiply-add (see
// CMakeLists.txt), and sums in sixteen lanes that are added in one order.
#pragma once

#include "kernels_simd.hpp"

namespace minutely::MINUTELY_ISA {

// Written with the compiler's vectors: left to itself it spills the lanes and waits for its own stores.
using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));

inline Eight load_eight(const float* from) {
    Eight values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

// kDim 0 means a dimension known only at run time.
template <uint32_t kDim> inline float squared_norm(const float* gradient, uint32_t dim) {
    constexpr uint32_t kLanes = 16;
    const uint32_t n = kDim != 0 ? kDim : dim;
    Eight low = {}, high = {};
    uint32_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        const Eight a = load_eight(gradient + j), b = load_eight(gradient + j + 8);
        low += a * a;
        high += b * b;
    }
    if constexpr (kDim == 0 || kDim % kLanes != 0) {
        if (j < n) {
            float rest[kLanes] = {};
            std::memcpy(rest, gradient + j, (n - j) * sizeof(float));
            const Eight a = load_eight(rest), b = load_eight(rest + 8);
            low += a * a;
            high += b * b;
        }
    }
    const Eight eight = low + high;
    Four four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
    four += __builtin_shufflevector(four, four, 1, 0, 3, 2);
    return four[0];
}

// False, and nothing added, where the gradient is not finite in the sense of step().
inline bool accumulate(float* __restrict sum, const float* __restrict gradient, uint32_t dim) {
    if (!(squared_norm<0>(gradient, dim) <= 3.4028234e38f)) return false;
    for (uint32_t j = 0; j < dim; ++j) sum[j] += gradient[j];
    return true;
}

// Returns false, and changes nothing, where the gradient holds NaN or infinity, or is so large that its square does.
template <OptimizerKind kKind, uint32_t kDim>
inline bool step(const Optimizer& with, uint32_t dim, float* __restrict row, Slot* slot,
                 const float* __restrict gradient) {
    const uint32_t n = kDim != 0 ? kDim : dim;
    const float square = squared_norm<kDim>(gradient, dim);
    if (!(square <= 3.4028234e38f)) [[unlikely]]
        return false;
    // torch.nn.utils.clip_grad_norm_ over the row's summed gradient.
    float scale = 1.0f;
    if (with.clip > 0.0f) {
        const float wanted = with.clip / (std::sqrt(square) + 1e-6f);
        scale = wanted < 1.0f ? wanted : 1.0f;
    }
    const float rate = with.learning_rate;
    if constexpr (kKind == OptimizerKind::kSgd) {
        for (uint32_t j = 0; j < n; ++j) row[j] -= rate * (gradient[j] * scale);
    } else if constexpr (kKind == OptimizerKind::kRowAdagrad) {
        // Row-wise Adagrad: Gupta, Bengio, Weston, "Training highly multiclass classifiers" (JMLR 2014), as in fbgemm.
        const float sum = slot->aux_float() + square * scale * scale / static_cast<float>(n);
        slot->set_aux(sum);
        const float factor = rate * scale / (std::sqrt(sum) + with.eps);
        for (uint32_t j = 0; j < n; ++j) row[j] -= factor * gradient[j];
    } else if constexpr (kKind == OptimizerKind::kAdagrad) {
        // Duchi, Hazan, Singer (JMLR 2011); torch.optim.Adagrad without decay.
        float* __restrict sums = row + n;
        for (uint32_t j = 0; j < n; ++j) {
            const float g = gradient[j] * scale;
            sums[j] += g * g;
            row[j] -= rate * (g / (std::sqrt(sums[j]) + with.eps));
        }
    } else if constexpr (kKind == OptimizerKind::kMomentum) {
        // torch.optim.SGD(momentum=...), without dampening.
        float* __restrict velocity = row + n;
        for (uint32_t j = 0; j < n; ++j) {
            velocity[j] = with.beta1 * velocity[j] + gradient[j] * scale;
            row[j] -= rate * velocity[j];
        }
    } else if constexpr (kKind == OptimizerKind::kAdam) {
        // Kingma and Ba (ICLR 2015); torch.optim.Adam with each row as a parameter of its own, so that a row's bias
        // correction counts its own steps.
        float* __restrict mean = row + n;
        float* __restrict variance = row + 2 * n;
        const float steps = slot->aux_float() + 1.0f;
        slot->set_aux(steps);
        const auto count = static_cast<double>(steps);
        const auto size =
            static_cast<float>(static_cast<double>(rate) / (1.0 - std::pow(static_cast<double>(with.beta1), count)));
        const auto root = static_cast<float>(std::sqrt(1.0 - std::pow(static_cast<double>(with.beta2), count)));
        for (uint32_t j = 0; j < n; ++j) {
            const float g = gradient[j] * scale;
            mean[j] += (g - mean[j]) * (1.0f - with.beta1);
            variance[j] = with.beta2 * variance[j] + (1.0f - with.beta2) * (g * g);
            row[j] -= size * (mean[j] / (std::sqrt(variance[j]) / root + with.eps));
        }
    } else {
        // FTRL-Proximal: McMahan et al., "Ad click prediction: a view from the trenches" (KDD 2013), algorithm 1.
        float* __restrict z = row + n;
        float* __restrict squares = row + 2 * n;
        for (uint32_t j = 0; j < n; ++j) {
            const float g = gradient[j] * scale;
            const float sum = squares[j] + g * g;
            z[j] += g - (std::sqrt(sum) - std::sqrt(squares[j])) / rate * row[j];
            squares[j] = sum;
            const float shrunk = z[j] > with.l1 ? z[j] - with.l1 : (z[j] < -with.l1 ? z[j] + with.l1 : 0.0f);
            row[j] = -shrunk / ((with.beta + std::sqrt(sum)) / rate + with.l2);
        }
    }
    return true;
}

}  // namespace minutely::MINUTELY_ISA
