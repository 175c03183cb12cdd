#include "memory.hpp"

#include <algorithm>
#include <new>

#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

namespace minutely {

namespace {

size_t round_up(size_t bytes) { return (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes; }

}  // namespace

VirtualArray::VirtualArray(size_t bytes) : reserved_(round_up(std::max<size_t>(bytes, 1))) {
    // One huge page more than asked for, so that the array can start on a huge page's boundary.
    const size_t mapped = reserved_ + kHugePageBytes;
    void* raw = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    const auto start = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (start + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    if (aligned > start) munmap(raw, aligned - start);
    const uintptr_t tail = start + mapped - (aligned + reserved_);
    if (tail > 0) munmap(reinterpret_cast<void*>(aligned + reserved_), tail);
    data_ = reinterpret_cast<std::byte*>(aligned);
}

VirtualArray::~VirtualArray() {
    if (data_ != nullptr) munmap(data_, reserved_);
}

void VirtualArray::commit(size_t bytes) {
    if (bytes <= committed_) return;
    if (bytes > reserved_) throw std::bad_alloc();
    // Steps of a sixteenth keep the calls few; a first huge page of ordinary pages keeps small tables small.
    const size_t target = std::min(reserved_, round_up(std::max(bytes, committed_ + committed_ / 16)));
    std::byte* from = data_ + committed_;
    const size_t added = target - committed_;
    if (mprotect(from, added, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    const size_t plain = committed_ == 0 ? std::min(added, kHugePageBytes) : 0;
    if (added > plain) madvise(from + plain, added - plain, MADV_HUGEPAGE);
#endif
    committed_ = target;
}

void VirtualArray::release(size_t from, size_t to) {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t first = (from + page - 1) / page * page;
    const size_t last = std::min(to, committed_) / page * page;
    if (last > first) madvise(data_ + first, last - first, MADV_DONTNEED);
}

size_t machine_bytes() {
    struct sysinfo info;
    if (sysinfo(&info) != 0) throw std::bad_alloc();
    return (static_cast<size_t>(info.totalram) + info.totalswap) * info.mem_unit;
}

}  // namespace minutely
