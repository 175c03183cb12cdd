// The process's worker threads, started with the first batch that is worth sharing and kept.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace minutely {

class Pool {
  public:
    static Pool& shared();

    // Calls work(part) for every part in [0, parts) on up to `threads` threads, the calling one included, and returns
    // when all are done. Where the workers are busy with another table's batch the caller does it all, so results must
    // not depend on who works. An exception of one part is thrown again here.
    void run(size_t threads, size_t parts, const std::function<void(size_t)>& work);

  private:
    Pool() = default;
    void grow(size_t workers);
    void serve();
    void take_parts();

    // A forked child has no workers, and does all itself.
    const pid_t process_ = getpid();
    std::mutex owner_;
    std::vector<std::thread> workers_;
    const std::function<void(size_t)>* work_ = nullptr;
    std::atomic<size_t> parts_{0};
    // Workers that may still join the batch.
    std::atomic<int64_t> seats_{0};
    std::atomic<uint64_t> next_part_{0};
    std::atomic<size_t> finished_{0};
    std::atomic<size_t> inside_{0};
    // Even while a batch is open to workers, odd while none is.
    std::atomic<uint64_t> generation_{1};
    std::mutex error_mutex_;
    std::exception_ptr error_;
};

}  // namespace minutely
