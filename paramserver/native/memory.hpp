// Address space that is reserved once and filled as it is used, so what lies in it never moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace minutely {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

class VirtualArray {
  public:
    VirtualArray() = default;
    // Reserves `bytes` of address space and no memory. Throws std::bad_alloc where the system refuses.
    explicit VirtualArray(size_t bytes);
    ~VirtualArray();
    VirtualArray(VirtualArray&& other) noexcept { *this = std::move(other); }
    VirtualArray& operator=(VirtualArray&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(reserved_, other.reserved_);
        std::swap(committed_, other.committed_);
        return *this;
    }

    // Makes the first `bytes` usable (zeroed; memory comes with the first touch). Throws std::bad_alloc past the
    // reservation.
    void commit(size_t bytes);
    // Gives the memory of [from, to) back, in whole pages; it stays usable and reads as zeros.
    void release(size_t from, size_t to);

    std::byte* data() const { return data_; }
    size_t committed() const { return committed_; }
    size_t reserved() const { return reserved_; }

  private:
    std::byte* data_ = nullptr;
    size_t reserved_ = 0;
    size_t committed_ = 0;
};

// Bytes of memory and swap that this machine has: more than that no table can hold, so no more is ever reserved.
size_t machine_bytes();

}  // namespace minutely
