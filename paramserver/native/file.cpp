#include "file.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

#include "crc32c.hpp"

namespace minutely {

namespace {

struct BlockHead {
    uint32_t kind;
    uint32_t crc;
    uint64_t bytes;
};
static_assert(sizeof(BlockHead) == 16);

[[noreturn]] void fail(const std::string& what, const std::string& path) {
    throw std::system_error(errno, std::generic_category(), what + " \"" + path + "\"");
}

}  // namespace

BlockWriter::BlockWriter(const std::string& path) : path_(path), temporary_(path + ".writing") {
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file_ < 0) fail("save: cannot write", temporary_);
}

BlockWriter::~BlockWriter() {
    if (written_beside_.valid()) written_beside_.wait();
    if (file_ < 0) return;
    close(file_);
    unlink(temporary_.c_str());
}

void BlockWriter::settle() {
    if (written_beside_.valid()) written_beside_.get();
}

void BlockWriter::block_beside(uint32_t kind, std::vector<std::byte>& payload, size_t bytes) {
    settle();
    leaving_.resize(payload.size());
    std::swap(leaving_, payload);
    written_beside_ = std::async(std::launch::async, [this, kind, bytes] {
        const BlockHead head{kind, crc32c(0, leaving_.data(), bytes), bytes};
        write(&head, sizeof head);
        write(leaving_.data(), bytes);
    });
}

void BlockWriter::block(uint32_t kind, const void* payload, size_t bytes) {
    settle();
    const BlockHead head{kind, crc32c(0, payload, bytes), bytes};
    write(&head, sizeof head);
    write(payload, bytes);
}

void BlockWriter::write(const void* data, size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    while (bytes > 0) {
        const ssize_t written = ::write(file_, from, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail("save: cannot write", temporary_);
        from += written;
        bytes -= static_cast<size_t>(written);
        written_ += static_cast<uint64_t>(written);
    }
#if defined(__linux__)
    // The disk starts at once instead of waiting for the last sync.
    const auto sent = static_cast<off_t>(written_ / kMostBlockBytes * kMostBlockBytes);
    sync_file_range(file_, std::max<off_t>(0, sent - static_cast<off_t>(kMostBlockBytes)), kMostBlockBytes,
                    SYNC_FILE_RANGE_WRITE);
#endif
}

void BlockWriter::finish() {
    block(0, nullptr, 0);
    if (fsync(file_) != 0) fail("save: cannot sync", temporary_);
    const int file = file_;
    file_ = -1;
    if (close(file) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) fail("save: cannot finish", path_);
    const size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) fail("save: cannot open folder", folder);
    const int synced = fsync(directory);
    close(directory);
    if (synced != 0) fail("save: cannot sync folder", folder);
}

BlockReader::BlockReader(const std::string& path) : path_(path) {
    file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) fail("load: cannot read", path);
    posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL);
}

BlockReader::~BlockReader() {
    if (coming_.valid()) coming_.wait();
    if (file_ >= 0) close(file_);
}

void BlockReader::refuse(const std::string& why) const {
    throw std::runtime_error("load: \"" + path_ + "\" is refused: " + why + "; the table is as it was");
}

void BlockReader::read(void* to, size_t bytes) const {
    auto* at = static_cast<std::byte*>(to);
    while (bytes > 0) {
        const ssize_t got = ::read(file_, at, bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("load: cannot read", path_);
        if (got == 0) refuse("it is cut off");
        at += got;
        bytes -= static_cast<size_t>(got);
    }
}

BlockReader::Block BlockReader::fetch(std::vector<std::byte> buffer) const {
    BlockHead head;
    read(&head, sizeof head);
    if (head.bytes > kMostBlockBytes)
        refuse("a block claims " + std::to_string(head.bytes) + " bytes, more than any has");
    buffer.resize(kMostBlockBytes);
    read(buffer.data(), head.bytes);
    if (crc32c(0, buffer.data(), head.bytes) != head.crc) refuse("a block's checksum does not match its content");
    return {head.kind, head.bytes, std::move(buffer)};
}

uint32_t BlockReader::next() {
    std::vector<std::byte> spare = std::move(block_.payload);
    block_ = coming_.valid() ? coming_.get() : fetch({});
    if (block_.kind != 0) {
        coming_ = std::async(std::launch::async,
                             [this, spare = std::move(spare)]() mutable { return fetch(std::move(spare)); });
    }
    return block_.kind;
}

}  // namespace minutely
