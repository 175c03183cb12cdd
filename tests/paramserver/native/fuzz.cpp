// Bytes to operations, the table against a map. Built plainly it makes its own inputs from a seed (usage: fuzz SEED
// INPUTS); with -fsanitize=fuzzer -DMINUTELY_LIBFUZZER it is a libFuzzer target.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "table.hpp"

using namespace minutely;

namespace {

constexpr uint32_t kDim = 2;

struct Bytes {
    const uint8_t* data;
    size_t size;
    uint8_t next() { return size == 0 ? 0 : (--size, *data++); }
};

void require(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

struct Expected {
    float value;
    uint32_t last_seen;
    uint32_t count;
};

// Few distinct ids collide often in the model, many make the index grow; the highest bits and 0 are ids like others.
int64_t id_from(uint8_t byte, uint8_t spread) {
    return byte == 0 ? 0 : static_cast<int64_t>((uint64_t{byte} << 56) | (uint64_t{spread} << 20) | (spread & 7u));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes bytes{data, size};
    Options options;
    options.dim = kDim;
    options.optimizer.kind = OptimizerKind::kSgd;
    options.optimizer.learning_rate = 1.0f;
    options.seed = bytes.next();
    options.expire_after_seconds = 20;
    options.candidates = 4;
    const auto sets = available_kernels();
    Table table(options, *sets[bytes.next() % sets.size()]);
    std::map<int64_t, Expected> rows;
    std::set<int64_t> changed, gone;
    uint32_t now = 100;
    while (bytes.size > 0) {
        const uint8_t operation = bytes.next();
        now += bytes.next() % 8;
        std::vector<int64_t> ids;
        const size_t count = size_t{bytes.next()} * (operation >= 0xf0 ? 16 : 1);
        const uint8_t spread = bytes.next();
        for (size_t i = 0; i < count; ++i) {
            const auto extra = static_cast<uint8_t>(operation >= 0xf0 ? i * 7 : 0);
            ids.push_back(id_from(bytes.next(), static_cast<uint8_t>(spread + extra)));
        }
        std::vector<float> values(count * kDim, static_cast<float>(operation % 5));
        if (operation % 11 == 0) table.reserve(count * 8);
        switch (operation % 7) {
        case 0:
            table.lookup_or_insert(ids.data(), count, int64_t{now} * 1000, values.data());
            for (const int64_t id : ids) {
                auto& row = rows.try_emplace(id, Expected{0, now, 0}).first->second;
                row.last_seen = now;
                ++row.count;
                changed.insert(id);
            }
            break;
        case 1: {
            table.apply(ids.data(), values.data(), count, int64_t{now} * 1000);
            for (const int64_t id : ids) {
                const auto row = rows.find(id);
                if (row == rows.end()) continue;
                row->second.value -= static_cast<float>(operation % 5);
                if (changed.insert(id).second) row->second.last_seen = now;
            }
            break;
        }
        case 2:
            table.lookup_or_insert(nullptr, 0, int64_t{now} * 1000, nullptr);
            table.upsert(ids.data(), values.data(), count);
            for (const int64_t id : ids) {
                rows.try_emplace(id, Expected{0, now, 0}).first->second.value = static_cast<float>(operation % 5);
                changed.insert(id);
            }
            break;
        case 3: {
            const std::set<int64_t> distinct(ids.begin(), ids.end());
            uint64_t there = 0;
            for (const int64_t id : distinct) {
                if (rows.erase(id) == 0) continue;
                ++there;
                changed.erase(id);
                gone.insert(id);
            }
            require(table.erase(ids.data(), count) == there, "erase counts wrongly");
            break;
        }
        case 4: {
            uint64_t due = 0;
            for (auto row = rows.begin(); row != rows.end();) {
                if (row->second.last_seen > now - options.expire_after_seconds) {
                    ++row;
                    continue;
                }
                ++due;
                changed.erase(row->first);
                gone.insert(row->first);
                row = rows.erase(row);
            }
            uint64_t expired = table.expire(int64_t{now} * 1000, 1u << 20);
            expired += table.expire(int64_t{now} * 1000, 1u << 20);
            require(expired == due, "expire counts wrongly");
            break;
        }
        case 5: {
            const Rows sealed = table.seal();
            require(std::set<int64_t>(sealed.ids.begin(), sealed.ids.end()) == changed, "a seal's rows differ");
            require(sealed.ids.size() == changed.size(), "a seal repeats a row");
            require(std::set<int64_t>(sealed.expired.begin(), sealed.expired.end()) == gone,
                    "a seal's expired ids differ");
            require(sealed.expired.size() == gone.size(), "a seal repeats an expired id");
            changed.clear();
            gone.clear();
            break;
        }
        default:
            table.lookup(ids.data(), count, values.data());
            for (size_t i = 0; i < count; ++i) {
                const auto row = rows.find(ids[i]);
                require(values[i * kDim] == (row == rows.end() ? 0.0f : row->second.value), "lookup reads wrongly");
            }
        }
        require(table.size() == rows.size(), "the number of rows differs");
    }
    const Rows all = table.export_rows();
    require(all.ids.size() == rows.size(), "export has another number of rows");
    size_t at = 0;
    for (const auto& [id, row] : rows) {
        require(all.ids[at] == id && all.embeddings[at * kDim + 1] == row.value, "export differs");
        require(all.last_seen_seconds[at] == row.last_seen && all.counts[at] == row.count, "export's sights differ");
        ++at;
    }
    Table recovered(options, *sets.front());
    if (all.ids.size() % 2 != 0) recovered.reserve(all.ids.size());
    const size_t half = all.ids.size() / 2;
    for (const size_t count : {half, all.ids.size(), half}) {
        recovered.restore({count, all.ids.data(), all.embeddings.data(), all.state.data(), all.last_seen_seconds.data(),
                           all.counts.data(), 0, nullptr});
    }
    const Rows again = recovered.export_rows();
    require(again.ids == all.ids && again.embeddings == all.embeddings && again.counts == all.counts &&
                again.last_seen_seconds == all.last_seen_seconds,
            "what was recovered differs");
    return 0;
}

#if !defined(MINUTELY_LIBFUZZER)
int main(int count, char** arguments) {
    uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1;
    const int inputs = count > 2 ? std::atoi(arguments[2]) : 100;
    for (int input = 0; input < inputs; ++input) {
        std::vector<uint8_t> bytes(splitmix64(seed) % 20000);
        for (auto& byte : bytes) byte = static_cast<uint8_t>(splitmix64(seed));
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%d passed, 0 failed\n", inputs);
    return 0;
}
#endif
