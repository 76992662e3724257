// A pool of threads that run one task together, with barriers inside it. A waiting thread spins for some microseconds,
// because the next phase is near, and then sleeps, because another process may need the core. Work between two barriers
// is taken in pieces, so that a thread that loses its core delays only one piece.
#pragma once
#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dp {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// A counter that threads can wait on.
class Gate {
   public:
    uint32_t now() const { return word_.load(std::memory_order_acquire); }

    void open() {
        word_.fetch_add(1);
#if defined(__linux__)
        if (sleepers_.load()) syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
    }

    // Returns when the counter is no longer `old`. Spins for the given time, calling `idle`, then sleeps.
    template <class Idle>
    void wait(uint32_t old, std::chrono::nanoseconds spin, Idle& idle) {
        const auto start = std::chrono::steady_clock::now();
        do {
            for (int i = 0; i < 16; i++, idle())
                if (now() != old) return;
        } while (std::chrono::steady_clock::now() - start < spin);
#if defined(__linux__)
        sleepers_.fetch_add(1);
        while (word_.load() == old) syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
        sleepers_.fetch_sub(1);
#else
        while (now() == old) std::this_thread::yield();
#endif
    }

   private:
    alignas(64) std::atomic<uint32_t> word_{0};
    std::atomic<int> sleepers_{0};
};

// Requests short time slices from the scheduler: the same share of a core, but sooner after a wake-up. Threads that
// wait for each other then lose less to other processes. Needs Linux 6.12; no effect on older ones.
inline void ask_short_slices() {
#if defined(__linux__)
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } own{};
    if (syscall(SYS_sched_getattr, 0, &own, sizeof own, 0) || own.policy != SCHED_OTHER) return;
    own.runtime = 100'000;  // nanoseconds; the shortest there is
    syscall(SYS_sched_setattr, 0, &own, 0);
#endif
}

struct Range {
    int begin, end;
};

// A thread's share of n equal pieces.
inline Range share(int n, int thread, int num_threads) {
    return {int(int64_t(n) * thread / num_threads), int(int64_t(n) * (thread + 1) / num_threads)};
}

class Pool {
   public:
    explicit Pool(int num_threads) : size_(num_threads), taken_{std::vector<Taken>(num_threads), std::vector<Taken>(num_threads)} {
        for (int thread = 1; thread < num_threads; thread++) workers_.emplace_back([this, thread] {
            ask_short_slices();
            serve(thread);
        });
    }

    ~Pool() {
        stopping_ = true;
        calls_.open();
        for (auto& worker : workers_) worker.join();
    }

    int size() const { return size_; }

    // Runs work(thread) on every thread; returns when all have finished. One caller at a time.
    void run(const std::function<void(int)>& work) {
        std::lock_guard lock(turn_);
        thread_local bool asked = false;
        if (!asked) ask_short_slices(), asked = true;
        for (auto& taken : taken_) forget(taken);
        work_ = &work;
        running_.store(size_);
        const uint32_t done = done_.now();
        if (size_ > 1) calls_.open();
        work(0);
        if (!leave()) done_.wait(done, kSpin, relax);
    }

    // Returns when all threads have reached it. Who waits calls `idle`, who comes last calls it once.
    template <class Idle>
    void barrier(Idle idle) {
        const uint32_t phase = phase_.now();
        if (arrived_.fetch_add(1) + 1 < size_) return phase_.wait(phase, kSpin, idle);
        arrived_.store(0, std::memory_order_relaxed);
        phase_.open();
        forget(taken_[phase & 1]);  // needed after the next barrier
        idle();
    }

    void barrier() { barrier(relax); }

    // Takes the next of this phase's `count` pieces, at most `most` at once: first from the thread's own share, then
    // from other threads' shares. Returns false when all are taken. One set of pieces between two barriers.
    bool take(int thread, int count, int most, Range& pieces) {
        std::vector<Taken>& taken = taken_[phase_.now() & 1];
        for (int i = 0; i < size_; i++) {
            const int owner = thread + i < size_ ? thread + i : thread + i - size_;
            const Range own = share(count, owner, size_);
            std::atomic<int>& next = taken[owner].pieces;
            if (own.begin + next.load(std::memory_order_relaxed) >= own.end) continue;
            const int at = own.begin + next.fetch_add(most, std::memory_order_relaxed);
            if (at >= own.end) continue;
            pieces = {at, std::min(at + most, own.end)};
            return true;
        }
        return false;
    }

   private:
    static constexpr std::chrono::microseconds kSpin{30}, kIdleSpin{150};  // between phases, between calls

    struct alignas(64) Taken {
        std::atomic<int> pieces{0};
    };

    static void forget(std::vector<Taken>& taken) {
        for (Taken& one : taken) one.pieces.store(0, std::memory_order_relaxed);
    }

    // Whether this was the last thread to leave.
    bool leave() {
        if (running_.fetch_sub(1) > 1) return false;
        done_.open();
        return true;
    }

    void serve(int thread) {
        for (uint32_t seen = 0;; seen++) {
            calls_.wait(seen, kIdleSpin, relax);
            if (stopping_) return;
            (*work_)(thread);
            leave();
        }
    }

    const int size_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<bool> stopping_{false};
    Gate calls_, done_, phase_;
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    std::vector<Taken> taken_[2];  // of this phase and the next, indexed by the last bit of the phase number
    std::mutex turn_;
    std::vector<std::thread> workers_;
};

}  // namespace dp
