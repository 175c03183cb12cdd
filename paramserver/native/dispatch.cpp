#include "kernels.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace minutely {

namespace plain {
extern const Kernels kKernels;
}
#if defined(MINUTELY_X86_KERNELS)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

bool slots_are_atomic() {
#if defined(MINUTELY_TSAN)
    return true;
#elif defined(__x86_64__)
    return __builtin_cpu_supports("avx") && (__builtin_cpu_is("intel") || __builtin_cpu_is("amd"));
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long kLse2 = 1ul << 25;  // HWCAP_USCAT
    return (getauxval(AT_HWCAP) & kLse2) != 0;
#else
    return false;
#endif
}

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> sets = {&plain::kKernels};
#if defined(MINUTELY_X86_KERNELS)
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    if (avx2) sets.push_back(&avx2::kKernels);
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512) sets.push_back(&avx512::kKernels);
#endif
    return sets;
}

const Kernels* find_kernels(std::string_view name) {
    const auto sets = available_kernels();
    if (name.empty()) return sets.back();
    for (const Kernels* set : sets) {
        if (name == set->name) return set;
    }
    return nullptr;
}

}  // namespace minutely
