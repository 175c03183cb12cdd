// Readers beside a writer, on every kernel set and in every row format: no row torn between two versions, none of
// another id, none missed that was there all the time; while ids come, go, move, expire and leave their slots to
// others.
//
// usage: stress [KERNELS], for STRESS_SECONDS (10) in all, shared out evenly. Made for release builds, in which the
// compiler reorders and splits what it may; right under ThreadSanitizer too.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "stress_rows.hpp"
#include "stress_training.hpp"
#include "table.hpp"

// The processor can stop after each instruction, and the program then runs on in a signal's handler.
// Without sanitizers: code that they check takes minutes in steps.
#if defined(__x86_64__) && defined(__linux__) && !defined(MINUTELY_TSAN) && !defined(__SANITIZE_ADDRESS__)
#include <signal.h>
#include <ucontext.h>
#define STRESS_STEPS 1
#endif

using namespace minutely;

namespace {

using Clock = std::chrono::steady_clock;

constexpr float kDefault = -3000.0f;
constexpr float kFresh = 2500.0f;        // rows that training makes
constexpr size_t kFirst = 3;             // of the ids with one fate, read more often
constexpr uint64_t kMostSteps = 30'000;  // with a write, of a lookup
constexpr int kReaders = 2;
constexpr int kRounds = 3000;  // of a table's life
constexpr int kWide = 16;      // rounds from one with all ids to the next; the others are about the hot ones

bool all(const float* row, uint32_t dim, float value) {
    return std::all_of(row, row + dim, [&](float one) { return one == value; });
}

class Stress {
  public:
    // One table, from empty on; ids and dimension depend on the turn.
    Stress(const Kernels& kernels, RowFormat format, bool beside_readers, uint64_t turn, Faults& faults)
        : options_(options_of(format, turn)), table_(options_, kernels, beside_readers), dim_(options_.dim),
          state_(turn), faults_(faults) {
        const std::vector<float> none(dim_, kDefault);
        table_.set_default_row(none.data(), nullptr);
        const Hash hash(hash_seed(table_seed(options_.seed, options_.name), options_.secret));
        const auto add = [&](Group& group, int count, int first_bits, int second_bits) {
            for (int found = 0; found < count;) {
                const auto id = static_cast<int64_t>(splitmix64(state_));
                const Hashes hashes = hash.both(static_cast<uint64_t>(id));
                if (first_bits > 0 && hashes.first >> (64 - first_bits) != 0) continue;
                if (second_bits > 0 && hashes.second >> (64 - second_bits) != 0) continue;
                group.ids.push_back(id);
                ++found;
            }
        };
        // The hot ones share few buckets and take each other's slots; a crowd displaces each other, and ids that share
        // both buckets end in the overflow.
        add(hot_, 10, 8, 0);
        add(hot_coming_, 20, 8, 0);
        add(steady_, 500, 0, 0);
        add(steady_, 100, 4, 0);
        add(coming_, 2000, 0, 0);
        add(coming_, 600, 4, 0);
        add(coming_, 20, 8, 8);
        add(absent_, 50, 8, 0);
        // Id 0 looks like an empty slot.
        Group* const zero[] = {&hot_, &hot_coming_, &absent_};
        zero[turn % 3]->ids.insert(zero[turn % 3]->ids.begin(), 0);
        for (Group* group : groups()) group->fill(dim_);
    }

    void run(Clock::time_point until) {
        for (Group* group : {&hot_, &steady_}) upsert(*group, 0, group->ids.size(), 1);
        std::atomic<bool> stop{false};
        std::vector<std::thread> readers;
        for (uint64_t i = 0; i < kReaders; ++i) {
            readers.emplace_back([&, i] {
                uint64_t state = mix(options_.seed, i);
                do read(state);
                while (!stop);
            });
        }
        for (uint32_t round = 2; round < kRounds && Clock::now() < until; ++round) {
            if (round % kWide == 0) write_all(round);
            write_hot(round);
        }
        stop = true;
        for (auto& reader : readers) reader.join();
    }

#if defined(STRESS_STEPS)
    // One thread is both: after each instruction of a lookup something is written. What two threads meet by luck, and
    // hardly ever where one runs at a time, is met for certain.
    void step(Clock::time_point until) {
        for (Group* group : {&hot_, &steady_}) upsert(*group, 0, group->ids.size(), 1);
        struct sigaction action{};
        action.sa_flags = SA_SIGINFO;
        action.sa_sigaction = [](int, siginfo_t*, void* context) {
            constexpr greg_t kTrapFlag = 0x100;
            greg_t& flags = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL];
            flags = stepping_ != nullptr ? flags | kTrapFlag : flags & ~kTrapFlag;
            if (stepping_ != nullptr) stepping_->write_something();
        };
        sigaction(SIGTRAP, &action, nullptr);
        uint64_t state = options_.seed;
        for (uint32_t i = 0; i < kRounds / 100 && Clock::now() < until; ++i) read(state, true);
    }
#endif

  private:
    static Options options_of(RowFormat format, uint64_t turn) {
        static constexpr uint32_t kDims[] = {16, 13, 64};
        Options options;
        options.dim = kDims[turn / 3 % 3];
        options.format = format;
        options.candidates = 1;
        options.optimizer.kind = OptimizerKind::kSgd;
        options.initializer = {InitializerKind::kConstant, kFresh, 0.0f};
        options.expire_after_seconds = 2;
        options.seed = turn;
        return options;
    }
    std::vector<Group*> groups() { return {&hot_, &hot_coming_, &steady_, &coming_, &absent_}; }

    void upsert(Group& group, size_t from, size_t to, uint32_t version) {
        group.started = version;
        table_.upsert(group.ids.data() + from, group.row(from, version, dim_), to - from);
        if (to - from == group.ids.size()) group.committed = version;
    }

    void lookup(const std::vector<int64_t>& ids, std::vector<float>& out, [[maybe_unused]] bool in_steps) {
#if defined(STRESS_STEPS)
        if (in_steps) {
            steps_before_ = faults_.steps;
            stepping_ = this;
            raise(SIGTRAP);
            table_.lookup(ids.data(), ids.size(), out.data());
            stepping_ = nullptr;
            if (faults_.steps < steps_before_ + ids.size()) ++faults_.idle;
            return;
        }
#endif
        table_.lookup(ids.data(), ids.size(), out.data());
    }

#if defined(STRESS_STEPS)
    // A new version, or one id in the place of another. Ids that come move others now and then only: a reader begins
    // again after each move.
    void write_something() {
        // Rows taken out of use wait for the reader, which waits for this: there must never be too many.
        if (++faults_.steps - steps_before_ > kMostSteps) return;
        const uint64_t random = splitmix64(state_);
        if (random % 2 == 0) {
            const size_t i = (random >> 8) % hot_.ids.size();
            upsert(hot_, i, i + 1, hot_.started + 1);
        } else if (random % 256 == 1) {
            const size_t i = (random >> 8) % coming_.ids.size();
            upsert(coming_, i, i + 1, coming_.started + 1);
        } else {
            const size_t i = (random >> 8) % kFirst;
            table_.erase(&hot_coming_.ids[last_], 1);
            upsert(hot_coming_, i, i + 1, hot_coming_.started + 1);
            last_ = i;
        }
    }
#endif

    // What some reader reads at this moment, in any order of coming and going.
    void write_hot(uint32_t round) {
        const size_t count = hot_coming_.ids.size();
        for (size_t at = 0; at < count; ++at) {
            const size_t i = splitmix64(state_) % count;
            if (splitmix64(state_) % 2 == 0) {
                upsert(hot_coming_, i, i + 1, round);
            } else {
                table_.erase(&hot_coming_.ids[i], 1);
            }
        }
        upsert(hot_, 0, hot_.ids.size(), round);
    }

    void write_all(uint32_t round) {
        const size_t count = coming_.ids.size();
        const size_t from = splitmix64(state_) % count, to = std::min(count, from + splitmix64(state_) % count + 1);
        if (options_.format == RowFormat::kTrain) {
            const int64_t now_ms = int64_t{round / kWide} * 1000;
            std::vector<float> out(std::max(steady_.ids.size(), count) * dim_);
            for (const Group* group : {&hot_, &steady_})
                table_.lookup_or_insert(group->ids.data(), group->ids.size(), now_ms, out.data());
            table_.lookup_or_insert(coming_.ids.data() + from, to - from, now_ms, out.data());
            table_.expire(now_ms, 1u << 16);
            if (splitmix64(state_) % 4 == 0) table_.seal();
        }
        upsert(steady_, 0, steady_.ids.size(), round);
        upsert(coming_, from, to, round);
        // In small pieces: the slots that they leave are taken by others at once.
        for (size_t at = from; at < to; at += 50) {
            const size_t piece = std::min<size_t>(50, to - at);
            if (splitmix64(state_) % 3 != 0) table_.erase(coming_.ids.data() + at, piece);
            const size_t back = splitmix64(state_) % count;
            upsert(coming_, back, std::min(count, back + piece), round);
        }
        if (splitmix64(state_) % 64 == 0) table_.reserve(round * 10);
    }

    void read(uint64_t& state, bool in_steps = false) {
        struct Place {
            const Group* group;
            size_t i;
            uint32_t committed;
        };
        const bool wide = !in_steps && splitmix64(state) % 8 == 0;
        std::vector<Place> places;
        std::vector<int64_t> ids;
        for (const Group* group : groups()) {
            const bool hot = group == &hot_ || group == &hot_coming_ || group == &absent_;
            const uint32_t committed = group->committed;
            for (size_t n = in_steps ? 10 * hot : hot ? 100 : wide ? 300 : 0; n > 0; --n) {
                const size_t i = n % 3 == 0 ? n / 3 % kFirst : splitmix64(state) % group->ids.size();
                places.push_back({group, i, committed});
                ids.push_back(group->ids[i]);
            }
        }
        std::vector<float> out(ids.size() * dim_);
        lookup(ids, out, in_steps);
        uint64_t missed = 0;
        for (size_t at = 0; at < places.size(); ++at) {
            const auto [group, i, committed] = places[at];
            const float* row = out.data() + at * dim_;
            const uint32_t started = group->started;
            if (group->steady) {
                uint32_t version = committed;
                while (version < committed + kVersions && !group->holds(i, version, dim_, row)) ++version;
                if (version == committed + kVersions) {
                    all(row, dim_, kDefault) ? void(++missed) : fault(ids[at], row);
                } else {
                    faults_.old += version > started;
                }
            } else if (!all(row, dim_, kDefault)) {
                uint32_t back = group == &absent_ ? kVersions : 0;  // most rows are new
                while (back < kVersions && !group->holds(i, started + kVersions - back, dim_, row)) ++back;
                const bool fresh = options_.format == RowFormat::kTrain && group == &coming_ && all(row, dim_, kFresh);
                if (back == kVersions && !fresh) fault(ids[at], row);
            }
        }
        faults_.missed += missed;
        faults_.reads += ids.size();
        if (in_steps || splitmix64(state) % 8 != 0) return;
        bool there[1024];
        table_.contains(ids.data(), ids.size(), there);
        for (size_t at = 0; at < places.size(); ++at) {
            faults_.missed += places[at].group->steady && !there[at];
            faults_.foreign += places[at].group == &absent_ && there[at];
        }
    }

    // Whose row is it?
    void fault(int64_t id, const float* row) {
        for (const Group* group : groups()) {
            for (size_t i = 0; i < group->ids.size(); ++i) {
                for (uint32_t version = 0; version < kVersions; ++version) {
                    if (group->ids[i] == id || !group->holds(i, version, dim_, row)) continue;
                    ++faults_.foreign;
                    return;
                }
            }
        }
        ++faults_.torn;
    }

    const Options options_;
    Table table_;
    const uint32_t dim_;
    uint64_t state_;
    size_t last_ = 0;
    Group hot_{true}, hot_coming_{false}, steady_{true}, coming_{false}, absent_{false};
    Faults& faults_;
#if defined(STRESS_STEPS)
    static inline Stress* volatile stepping_ = nullptr;
    uint64_t steps_before_ = 0;
#endif
};

}  // namespace

int main(int count, char** arguments) {
    const char* given = std::getenv("STRESS_SECONDS");
    const double seconds = given != nullptr ? std::atof(given) : 10.0;
    const std::string only = count > 1 ? arguments[1] : "";
    static constexpr struct {
        RowFormat format;
        const char* name;
    } kFormats[] = {{RowFormat::kTrain, "train"},
                    {RowFormat::kFloat32, "float32"},
                    {RowFormat::kFloat16, "float16"},
                    {RowFormat::kInt8, "int8"}};
    std::vector<const Kernels*> sets;
    for (const Kernels* set : available_kernels()) {
        if (only.empty() || only == set->name) sets.push_back(set);
    }
    if (sets.empty()) {
        std::fprintf(stderr, "stress: no kernels \"%s\" on this machine\n", only.c_str());
        return 2;
    }
    // Every format of a set, each beside a writer, one also as where slots are not atomic, and training.
    const auto share = std::chrono::duration<double>(seconds / static_cast<double>(sets.size() * 10));
    const auto until = [&] { return Clock::now() + std::chrono::duration_cast<Clock::duration>(share); };
    bool failed = false;
    enum class Way { kThreads, kSteps, kWait };
    const auto run = [&](const Kernels& kernels, RowFormat format, const char* name, Way way) {
        Faults faults;
        const auto end = until();
        for (uint64_t turn = 0; turn < 3 || Clock::now() < end; ++turn) {
            Stress stress(kernels, format, way != Way::kWait, turn, faults);
#if defined(STRESS_STEPS)
            if (way == Way::kSteps) {
                stress.step(end);
                continue;
            }
#endif
            stress.run(end);
        }
        failed |= faults.sum() > 0;
        const auto number = [](uint64_t value) { return static_cast<unsigned long long>(value); };
        std::printf("%-7s %-8s %-15s %9llu reads: %llu torn, %llu of other ids, %llu missed, %llu old\n", kernels.name,
                    name,
                    way == Way::kThreads ? "beside a writer"
                    : way == Way::kSteps ? "step by step"
                                         : "readers wait",
                    number(faults.reads), number(faults.torn), number(faults.foreign), number(faults.missed),
                    number(faults.old));
        if (faults.idle > 0) std::puts("the processor did not stop after each instruction");
        std::fflush(stdout);
    };
    for (const Kernels* set : sets) {
        for (const auto& [format, name] : kFormats) {
            if (!slots_are_atomic()) continue;
            run(*set, format, name, Way::kThreads);
#if defined(STRESS_STEPS)
            run(*set, format, name, Way::kSteps);
#endif
        }
        run(*set, RowFormat::kInt8, "int8", Way::kWait);
        failed |= !training(*set, until());
    }
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
