// Who reads now: epoch-based reclamation for readers beside a writer, and a gate for work that must be alone.
//
// A reader announces the epoch it started in for the length of one batch; what a writer takes out of use is reused once
// every reader that could still see it is gone (Fraser, "Practical lock-freedom", 2004, chapter 5.2.3). Readers take no
// lock and write nothing that others read often.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>

namespace minutely {

class Readers {
  public:
    class Guard {
      public:
        explicit Guard(Readers& readers) : place_(readers.enter()) {}
        ~Guard() { place_.store(0, std::memory_order_release); }
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;

      private:
        std::atomic<uint64_t>& place_;
    };

    // While it lives no reader is inside: for operations that change rows in place. The caller holds the writer's lock.
    class Exclusive {
      public:
        explicit Exclusive(Readers& readers) : readers_(readers) {
            readers_.closed_.store(true, std::memory_order_seq_cst);
            for (auto& place : readers_.places_) {
                while (place.epoch.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
            }
        }
        ~Exclusive() {
            readers_.closed_.store(false, std::memory_order_release);
            readers_.closed_.notify_all();
        }
        Exclusive(const Exclusive&) = delete;
        Exclusive& operator=(const Exclusive&) = delete;

      private:
        Readers& readers_;
    };

    // Ends the current epoch and returns it: the stamp for what was taken out of use before this call.
    uint64_t next_epoch() { return epoch_.fetch_add(1, std::memory_order_seq_cst); }

    // The oldest epoch that a reader may still be in; things stamped earlier are free to be reused.
    uint64_t oldest() const {
        uint64_t oldest = epoch_.load(std::memory_order_seq_cst);
        for (const auto& place : places_) {
            const uint64_t epoch = place.epoch.load(std::memory_order_seq_cst);
            if (epoch != 0 && epoch < oldest) oldest = epoch;
        }
        return oldest;
    }

  private:
    struct alignas(64) Place {
        std::atomic<uint64_t> epoch{0};
    };

    std::atomic<uint64_t>& enter() {
        static std::atomic<size_t> threads{0};
        thread_local const size_t start = threads.fetch_add(1, std::memory_order_relaxed);
        for (size_t i = start;; ++i) {
            auto& place = places_[i % places_.size()].epoch;
            uint64_t idle = 0;
            if (!place.compare_exchange_strong(idle, epoch_.load(std::memory_order_seq_cst),
                                               std::memory_order_seq_cst)) {
                if (i - start >= places_.size()) std::this_thread::yield();
                continue;
            }
            if (!closed_.load(std::memory_order_seq_cst)) return place;
            place.store(0, std::memory_order_release);
            closed_.wait(true, std::memory_order_acquire);
        }
    }

    std::atomic<uint64_t> epoch_{1};
    std::atomic<bool> closed_{false};
    std::array<Place, 64> places_;
};

}  // namespace minutely
