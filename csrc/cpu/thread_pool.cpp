// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>

#include "cpu/worker.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemma_surgery::cpu {

namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// How long an idle worker looks for work before it sleeps: longer than the gap between
// the products of one layer, short against a token.
constexpr auto kSpinTime = std::chrono::microseconds(200);
constexpr int kSpinsPerLook = 64;

// One word packs which job is running and how many of its tasks nobody has taken, so that a
// worker that wakes late can take none of a job it does not know, nor of one that is used up
// while the next is being set up.
constexpr int kTaskBits = 40;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;

// Threads started meanwhile take no signals: those are for the threads of the program, which
// may be waiting for one.
class SignalsBlocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~SignalsBlocked() {
    pthread_sigmask(SIG_SETMASK, &saved_, nullptr);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t saved_;
#endif
};

class Pool {
 public:
  void run(int64_t count, int threads, const Task& work) {
    grow(threads - 1);
    const uint64_t job = (left_.load(std::memory_order_relaxed) >> kTaskBits) + 1;
    work_.store(&work, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    helpers_.store(threads - 1, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    left_.store((job << kTaskBits) | static_cast<uint64_t>(count), std::memory_order_release);
    announced_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      announced_.notify_all();
    }
    take_tasks(job & (~uint64_t{0} >> kTaskBits));
    for (int spins = 0; done_.load(std::memory_order_acquire) != count;) {
      pause();
      if (++spins % kSpinsPerLook == 0) {
        std::this_thread::yield();
      }
    }
  }

 private:
  void grow(int helpers) {
    if (started_ >= helpers) {
      return;
    }
    const SignalsBlocked blocked;
    try {
      for (; started_ < helpers; ++started_) {
        std::thread([this, index = started_] { serve(index); }).detach();
      }
    } catch (const std::exception&) {
      // No more threads to be had: those that run do the work.
    }
  }

  void take_tasks(uint64_t job) {
    uint64_t left = left_.load(std::memory_order_acquire);
    while (left >> kTaskBits == job && (left & kTaskMask) != 0) {
      if (left_.compare_exchange_weak(
              left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        // Read only now: until the task that was taken is done, they are this job's.
        const Task* work = work_.load(std::memory_order_relaxed);
        const int64_t count = count_.load(std::memory_order_relaxed);
        (*work)(count - static_cast<int64_t>(left & kTaskMask));
        done_.fetch_add(1, std::memory_order_acq_rel);
        left = left_.load(std::memory_order_acquire);
      }
    }
  }

  [[noreturn]] void serve(int index) {
    const FloatMode mode;
    uint32_t seen = 0;
    while (true) {
      wait_beyond(seen);
      seen = announced_.load(std::memory_order_acquire);
      if (index < helpers_.load(std::memory_order_relaxed)) {
        take_tasks(left_.load(std::memory_order_acquire) >> kTaskBits);
      }
    }
  }

  void wait_beyond(uint32_t seen) {
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < kSpinsPerLook; ++i) {
        if (announced_.load(std::memory_order_acquire) != seen) {
          return;
        }
        pause();
      }
    } while (std::chrono::steady_clock::now() - start < kSpinTime);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    announced_.wait(seen, std::memory_order_seq_cst);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

  alignas(64) std::atomic<uint64_t> left_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<uint32_t> announced_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<const Task*> work_{nullptr};
  std::atomic<int64_t> count_{0};
  std::atomic<int> helpers_{0};
  int started_ = 0;
};

// Never destroyed: workers sleep in it until the process ends.
std::atomic<Pool*> the_pool{nullptr};
std::atomic<bool> in_use{false};

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    current = new Pool;
    the_pool.store(current, std::memory_order_release);
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has none of the threads: it starts a pool of its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
      the_pool.store(nullptr, std::memory_order_release);
      in_use.store(false, std::memory_order_release);
    });
    (void)registered;
#endif
  }
  return *current;
}

void run_alone(int64_t count, const Task& work) {
  const FloatMode mode;
  for (int64_t task = 0; task < count; ++task) {
    work(task);
  }
}

}  // namespace

int available_threads() {
  static const int count = [] {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
      return std::max(CPU_COUNT(&set), 1);
    }
#endif
    return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
  }();
  return count;
}

void parallel_tasks(int64_t count, int threads, const Task& work) {
  const int64_t wanted = threads > 0 ? threads : available_threads();
  const int useful = static_cast<int>(std::min(wanted, count));
  if (useful <= 1 || in_use.exchange(true, std::memory_order_acquire)) {
    run_alone(count, work);
    return;
  }
  {
    const FloatMode mode;
    pool().run(count, useful, work);
  }
  in_use.store(false, std::memory_order_release);
}

}  // namespace gemma_surgery::cpu
