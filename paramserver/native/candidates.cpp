#include "candidates.hpp"

#include <algorithm>

namespace minutely {

bool Candidates::admit(uint64_t id, uint32_t now_seconds, uint32_t admit_after) {
    const Slot* slot = index_.locate(id);
    uint32_t at;
    if (slot != nullptr) {
        at = slot->number();
        unlink(at);
    } else {
        at = add(id);
    }
    Record& record = records_[at];
    record.last_seen_seconds = std::max(record.last_seen_seconds, now_seconds);
    link_newest(at);
    if (++record.count < admit_after) return false;
    remove(at);
    return true;
}

uint64_t Candidates::expire(uint32_t until_seconds, uint64_t budget) {
    uint64_t expired = 0;
    while (expired < budget) {
        const uint32_t oldest = records_[0].newer;
        if (oldest == 0 || records_[oldest].last_seen_seconds > until_seconds) break;
        remove(oldest);
        ++expired;
    }
    return expired;
}

void Candidates::forget(uint64_t id) {
    if (const Slot* slot = index_.locate(id)) remove(slot->number());
}

uint32_t Candidates::add(uint64_t id) {
    if (index_.size() >= limit_) {
        remove(records_[0].newer);
        ++dropped_;
    }
    uint32_t at;
    if (free_.empty()) {
        at = static_cast<uint32_t>(records_.size());
        records_.emplace_back();
    } else {
        at = free_.back();
        free_.pop_back();
    }
    records_[at] = {id, 0, 0, 0, 0};
    index_.insert(Slot{id, at, 0});
    return at;
}

void Candidates::link_newest(uint32_t at) {
    const uint32_t newest = records_[0].older;
    records_[at].older = newest;
    records_[at].newer = 0;
    records_[newest].newer = at;
    records_[0].older = at;
}

void Candidates::unlink(uint32_t at) {
    records_[records_[at].older].newer = records_[at].newer;
    records_[records_[at].newer].older = records_[at].older;
}

void Candidates::remove(uint32_t at) {
    unlink(at);
    index_.erase(index_.locate(records_[at].id));
    free_.push_back(at);
}

}  // namespace minutely
