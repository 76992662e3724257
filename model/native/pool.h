// Threads that share one piece of work and meet at barriers inside it. A waiting thread spins for some microseconds,
// because the next phase is near, and then sleeps, because somebody else may want the core.
#pragma once
#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

#include <atomic>
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

// Waits until `word` is no longer `old`.
inline void await_change(std::atomic<uint32_t>& word, uint32_t old, int spins) {
    for (int i = 0; i < spins; i++) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

// Where the process may use just as many cores as it has threads, each thread keeps to one: otherwise whatever else wakes
// up pushes two of them onto the same core, and all wait at the next barrier for a slice of the scheduler's time.
// The main thread is let be, since the processes that it starts would inherit its one core.
inline void settle(int thread, int num_threads) {
#if defined(__linux__)
    cpu_set_t allowed, own;
    if (gettid() == getpid() || sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != num_threads) return;
    int cpu = -1;
    for (int left = thread + 1; left; left -= CPU_ISSET(cpu, &allowed) ? 1 : 0) cpu++;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    sched_setaffinity(0, sizeof own, &own);
#endif
}

class Pool {
   public:
    explicit Pool(int num_threads) : size_(num_threads) {
        for (int thread = 1; thread < num_threads; thread++) workers_.emplace_back([this, thread] {
            settle(thread, size_);
            serve(thread);
        });
    }

    ~Pool() {
        stopping_ = true;
        begin();
        for (auto& worker : workers_) worker.join();
    }

    int size() const { return size_; }

    // work(thread) on every thread; returns when all have ended. One caller at a time.
    void run(const std::function<void(int)>& work) {
        std::lock_guard lock(turn_);
        thread_local const Pool* settled = nullptr;
        if (settled != this) settle(0, size_), settled = this;
        work_ = &work;
        running_.store(size_, std::memory_order_relaxed);
        if (size_ > 1) begin();
        work(0);
        leave();
        for (uint32_t left; (left = running_.load(std::memory_order_acquire));) await_change(running_, left, kSpins);
    }

    void barrier() {
        if (size_ == 1) return;
        uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.fetch_add(1, std::memory_order_release);
            phase_.notify_all();
        } else {
            await_change(phase_, phase, kSpins);
        }
    }

   private:
    static constexpr int kSpins = 2000, kIdleSpins = 20000;  // some 20 and 200 us: between phases, between calls

    void begin() {
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
    }

    void leave() {
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
    }

    void serve(int thread) {
        for (uint32_t seen = 0;; seen++) {
            await_change(epoch_, seen, kIdleSpins);
            if (stopping_) return;
            (*work_)(thread);
            leave();
        }
    }

    const int size_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<uint32_t> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::mutex turn_;
    std::vector<std::thread> workers_;
};

// This thread's share of n equal pieces.
struct Share {
    int begin, end;
    Share(int n, int thread, int num_threads)
        : begin(int(int64_t(n) * thread / num_threads)), end(int(int64_t(n) * (thread + 1) / num_threads)) {}
};

}  // namespace dp
