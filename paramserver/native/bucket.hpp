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

// Not inlined, a function that depends on the instruction set would be merged with the others of its name.
#define MINUTELY_INLINE __attribute__((always_inline))
// Without its VEX form in AVX code, the move would cost a change of the processor's state.
#if defined(__AVX__)
#define MINUTELY_MOVE "vmovdqa"
#else
#define MINUTELY_MOVE "movdqa"
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

// Whether load_slot and store_slot move all 16 bytes at once on this processor, so that a reader sees key, row number
// and aux of one moment without a lock or a version. Where no manual promises it, writers keep readers out. (With AVX:
// Intel SDM volume 3A, 9.1.1, and AMD APM volume 2, 7.3.2, of aligned moves. With LSE2: Arm ARM, B2.2.1, of aligned
// pairs.)
bool slots_are_atomic();

// Written in assembly: a compiler takes an intrinsic or a copy apart into loads of the parts that it needs, and then a
// reader has one id's key and another one's row. Under ThreadSanitizer the compiler's own 16-byte atomics tell it what
// is meant.
MINUTELY_INLINE inline Slot load_slot(const Slot* from) {
    Slot slot;
#if defined(MINUTELY_TSAN)
    const auto bits = __atomic_load_n(reinterpret_cast<const unsigned __int128*>(from), __ATOMIC_ACQUIRE);
    std::memcpy(&slot, &bits, sizeof slot);
#elif defined(__x86_64__)
    __m128i bits;
    asm volatile(MINUTELY_MOVE " %1, %0" : "=x"(bits) : "m"(*from));
    std::memcpy(&slot, &bits, sizeof slot);
#elif defined(__aarch64__)
    uint64_t halves[2];
    asm volatile("ldp %0, %1, %2" : "=r"(halves[0]), "=r"(halves[1]) : "Q"(*from));
    std::memcpy(&slot, halves, sizeof slot);
#else
    slot = *from;
#endif
    return slot;
}

// The key alone: a hint, as the rest of the slot may be another's a moment later.
MINUTELY_INLINE inline uint64_t key_of(const Slot* slot) {
#if defined(MINUTELY_TSAN)
    return load_slot(slot).key;
#else
    return __atomic_load_n(&slot->key, __ATOMIC_RELAXED);
#endif
}

MINUTELY_INLINE inline void store_slot(Slot* to, const Slot& slot) {
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
    asm volatile(MINUTELY_MOVE " %1, %0" : "=m"(*to) : "x"(bits));
#elif defined(__aarch64__)
    uint64_t halves[2];
    std::memcpy(halves, &slot, sizeof halves);
    asm volatile("stp %1, %2, %0" : "=Q"(*to) : "r"(halves[0]), "r"(halves[1]));
#else
    *to = slot;
#endif
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace minutely
