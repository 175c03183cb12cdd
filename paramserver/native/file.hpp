// A file of checked blocks: kind u32, CRC-32C of the payload u32, payload bytes u64, payload; little endian, the last
// of kind 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <future>
#include <string>
#include <vector>

namespace minutely {

inline constexpr size_t kMostBlockBytes = size_t{4} << 20;

// Writes beside the path and takes its place in finish(), so the path holds the old file or the new one, whole.
class BlockWriter {
  public:
    explicit BlockWriter(const std::string& path);
    ~BlockWriter();
    BlockWriter(const BlockWriter&) = delete;
    BlockWriter& operator=(const BlockWriter&) = delete;

    void block(uint32_t kind, const void* payload, size_t bytes);
    // The same while the caller fills the next one: takes the buffer and leaves another one of its size.
    void block_beside(uint32_t kind, std::vector<std::byte>& payload, size_t bytes);
    void finish();

  private:
    void write(const void* data, size_t bytes);
    void settle();

    std::string path_;
    std::string temporary_;
    int file_ = -1;
    uint64_t written_ = 0;
    std::vector<std::byte> leaving_;
    std::future<void> written_beside_;
};

class BlockReader {
  public:
    explicit BlockReader(const std::string& path);
    ~BlockReader();
    BlockReader(const BlockReader&) = delete;
    BlockReader& operator=(const BlockReader&) = delete;

    // The kind of the next block, 0 at the end; its payload is valid until the next call. Throws where a block is
    // damaged.
    uint32_t next();
    const std::byte* payload() const { return block_.payload.data(); }
    size_t bytes() const { return block_.bytes; }
    [[noreturn]] void refuse(const std::string& why) const;

  private:
    struct Block {
        uint32_t kind = 0;
        size_t bytes = 0;
        std::vector<std::byte> payload;
    };
    void read(void* to, size_t bytes) const;
    Block fetch(std::vector<std::byte> buffer) const;

    std::string path_;
    int file_ = -1;
    Block block_;
    // The next block is read and checked while the caller works on this one.
    std::future<Block> coming_;
};

}  // namespace minutely
