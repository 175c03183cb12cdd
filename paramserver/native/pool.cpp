#include "pool.hpp"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace minutely {

namespace {

// A batch takes about a hundred microseconds; waking a sleeping thread takes a good part of that. So workers stay awake
// for the time between two batches of a busy table, and no longer.
constexpr auto kAwake = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

template <class Ready> bool spin(Ready ready) {
    const auto until = std::chrono::steady_clock::now() + kAwake;
    do {
        for (int i = 0; i < 64; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    return false;
}

}  // namespace

Pool& Pool::shared() {
    // Never destroyed: a worker may be asleep in it when the process ends, and a forked child has no workers to wait
    // for.
    static Pool* pool = new Pool;
    return *pool;
}

void Pool::grow(size_t workers) {
    while (workers_.size() < workers) {
        workers_.emplace_back([this] { serve(); });
        workers_.back().detach();
    }
}

void Pool::run(size_t threads, size_t parts, const std::function<void(size_t)>& work) {
    const std::unique_lock owner(owner_, std::try_to_lock);
    if (threads <= 1 || parts <= 1 || !owner.owns_lock() || getpid() != process_) {
        for (size_t part = 0; part < parts; ++part) work(part);
        return;
    }
    const size_t workers = std::min(threads, parts) - 1;
    grow(workers);
    // The generation is odd, so nobody enters any more; who is still inside from the last batch finds no part left.
    while (inside_.load(std::memory_order_seq_cst) != 0) pause();
    work_ = &work;
    parts_ = parts;
    seats_ = static_cast<int64_t>(workers);
    error_ = nullptr;
    finished_.store(0, std::memory_order_relaxed);
    next_part_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    generation_.notify_all();
    take_parts();
    while (finished_.load(std::memory_order_acquire) != parts) pause();
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (error_) std::rethrow_exception(error_);
}

void Pool::take_parts() {
    for (;;) {
        const uint64_t part = next_part_.fetch_add(1, std::memory_order_acq_rel);
        if (part >= parts_) return;
        try {
            (*work_)(part);
        } catch (...) {
            const std::scoped_lock lock(error_mutex_);
            error_ = std::current_exception();
        }
        finished_.fetch_add(1, std::memory_order_acq_rel);
    }
}

void Pool::serve() {
    for (;;) {
        uint64_t seen = 0;
        const auto open = [&] {
            seen = generation_.load(std::memory_order_seq_cst);
            return seen % 2 == 0 && seats_.load(std::memory_order_relaxed) > 0 &&
                   next_part_.load(std::memory_order_relaxed) < parts_.load(std::memory_order_relaxed);
        };
        if (!spin(open)) {
            generation_.wait(seen, std::memory_order_acquire);
            continue;
        }
        inside_.fetch_add(1, std::memory_order_seq_cst);
        if (generation_.load(std::memory_order_seq_cst) == seen && seats_.fetch_sub(1) > 0) take_parts();
        inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
}

}  // namespace minutely
