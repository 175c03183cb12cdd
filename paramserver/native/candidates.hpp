// Ids on their way into the table: exact occurrence counts in bounded memory.
#pragma once

#include <cstdint>
#include <vector>

#include "index.hpp"

namespace minutely {

// At most `limit` ids; when it is full the one that was seen longest ago goes. Writer only.
class Candidates {
  public:
    Candidates(uint64_t seed, uint32_t limit) : limit_(limit), index_(seed, limit), records_(1) {}

    // One more occurrence of an id without a row; true when that makes `admit_after`, and the id is forgotten here.
    bool admit(uint64_t id, uint32_t now_seconds, uint32_t admit_after);
    // Forgets ids last seen at or before `until_seconds`, at most `budget`; returns how many.
    uint64_t expire(uint32_t until_seconds, uint64_t budget);
    void forget(uint64_t id);

    uint64_t size() const { return index_.size(); }
    uint64_t dropped() const { return dropped_; }

  private:
    struct Record {
        uint64_t id;
        uint32_t count;
        uint32_t last_seen_seconds;
        uint32_t newer;
        uint32_t older;
    };
    void link_newest(uint32_t at);
    void unlink(uint32_t at);
    void remove(uint32_t at);
    uint32_t add(uint64_t id);

    uint32_t limit_;
    Index index_;
    std::vector<Record> records_;  // record 0 ends both directions of the list
    std::vector<uint32_t> free_;
    uint64_t dropped_ = 0;
};

}  // namespace minutely
