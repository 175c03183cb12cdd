// One bucket of the index: a cache line of four slots, each of which is read and written whole.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define MINUTELY_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MINUTELY_TSAN 1
#endif
#endif

// Without its VEX form beside AVX code, the move would cost a change of the processor's state.
#if defined(__AVX__)
#define MINUTELY_MOVE_16 "vmovdqa"
#else
#define MINUTELY_MOVE_16 "movdqa"
#endif

namespace minutely {

// A row number whose top bit says that the row changed since the last seal. Row number 0 is an empty slot, so zeroed
// memory is an empty index and every 64-bit value stays a valid id.
inline constexpr uint32_t kChanged = 1u << 31;
inline constexpr uint32_t kNoRow = 0;
inline constexpr int kSlotsPerBucket = 4;

// `aux` is what an operation needs beside the row number and would otherwise cost a cache miss: the accumulator of
// row-wise Adagrad, the step of Adam, or the scale of an int8 row.
struct alignas(16) Slot {
    uint64_t key;
    uint32_t row;
    uint32_t aux;

    uint32_t number() const { return row & ~kChanged; }
    bool used() const { return row != kNoRow; }
    float aux_float() const {
        float value;
        std::memcpy(&value, &aux, sizeof value);
        return value;
    }
    void set_aux(float value) { std::memcpy(&aux, &value, sizeof value); }
};
static_assert(sizeof(Slot) == 16);

struct alignas(64) Bucket {
    Slot slots[kSlotsPerBucket];
};
static_assert(sizeof(Bucket) == 64);

// Aligned 16-byte moves are atomic on every x86 processor with AVX (Intel SDM 3A 9.1.1; AMD says the same), so a reader
// sees key, row number and aux of one moment without a lock or a version. They are written in assembly, since a
// compiler may take an intrinsic apart into several narrower loads, and did. Where processors do not promise this,
// writers keep readers out (Table::beside_readers), and under ThreadSanitizer the compiler's own 16-byte atomics tell
// it what is meant.
inline Slot load_slot(const Slot* from) {
    Slot slot;
#if defined(MINUTELY_TSAN)
    const auto bits = __atomic_load_n(reinterpret_cast<const unsigned __int128*>(from), __ATOMIC_ACQUIRE);
    std::memcpy(&slot, &bits, sizeof slot);
#elif defined(__x86_64__)
    __m128i bits;
    asm volatile(MINUTELY_MOVE_16 " %1, %0" : "=x"(bits) : "m"(*from));
    std::memcpy(&slot, &bits, sizeof slot);
#else
    slot = *from;
#endif
    return slot;
}

inline void store_slot(Slot* to, const Slot& slot) {
#if defined(MINUTELY_TSAN)
    unsigned __int128 bits;
    std::memcpy(&bits, &slot, sizeof bits);
    __atomic_store_n(reinterpret_cast<unsigned __int128*>(to), bits, __ATOMIC_RELEASE);
#else
    // What a slot leads to is complete before the slot does: no later store may be seen first.
    std::atomic_thread_fence(std::memory_order_release);
#if defined(__x86_64__)
    __m128i bits;
    std::memcpy(&bits, &slot, sizeof bits);
    asm volatile(MINUTELY_MOVE_16 " %1, %0" : "=m"(*to) : "x"(bits));
#else
    *to = slot;
#endif
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace minutely
