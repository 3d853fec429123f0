// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/probes.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>

#include "cpu/checks.h"
#include "cpu/dispatch.h"
#include "cpu/probe_table.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_portable_probes;
#if defined(__x86_64__)
extern const ProbeLoops k_avx2_probes;
extern const ProbeLoops k_avx512_probes;
extern const ProbeLoops k_avx512_vnni_probes;
#elif defined(__aarch64__)
extern const ProbeLoops k_neon_probes;
#endif

namespace {

// Large enough to stream, small enough that threads end together.
constexpr int64_t kPartBytes = int64_t{1} << 20;
constexpr int64_t kPageBytes = 4096;

// A pass of about two milliseconds; nothing that disturbs one makes it faster.
constexpr int64_t kRounds = int64_t{1} << 16;
constexpr int kTasksPerThread = 8;
constexpr int kPasses = 8;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const ProbeLoops& find_loops(const Kernels* kernels) {
  const std::string name = (kernels != nullptr ? *kernels : find_kernels("")).name;
#if defined(__x86_64__)
  for (const ProbeLoops* loops : {&k_avx512_vnni_probes, &k_avx512_probes, &k_avx2_probes}) {
    if (name == loops->name) {
      return *loops;
    }
  }
#elif defined(__aarch64__)
  if (name == "neon_i8mm" || name == "neon_dot") {
    return k_neon_probes;
  }
#endif
  return k_portable_probes;
}

template <typename Loop>
Rate best_rate(int threads, int64_t operations, const char* method, const Loop& loop) {
  const int64_t tasks = int64_t{kTasksPerThread} * (threads > 0 ? threads : available_threads());
  double best = 0;
  // Printed nowhere, but seen by other threads: the loops cannot be left out.
  std::atomic<int64_t> kept{0};
  for (int pass = 0; pass < kPasses; ++pass) {
    const Clock::time_point start = Clock::now();
    parallel_tasks(tasks, threads, [&](int64_t) { kept += static_cast<int64_t>(loop(kRounds)); });
    const double done = static_cast<double>(tasks * kRounds) * static_cast<double>(operations);
    best = std::max(best, done / seconds_since(start));
  }
  return {best, method};
}

}  // namespace

ReadPass read_pass(const uint8_t* data, int64_t size, int threads, const Kernels* kernels) {
  if (size <= 0 || size % kPageBytes != 0) {
    fail("read_pass", "need a multiple of 4096 bytes, got " + std::to_string(size));
  }
  const ProbeLoops& loops = find_loops(kernels);
  const int64_t parts = (size + kPartBytes - 1) / kPartBytes;
  std::atomic<uint32_t> sum{0};
  const Clock::time_point start = Clock::now();
  parallel_tasks(parts, threads, [&](int64_t part) {
    const int64_t begin = part * kPartBytes;
    sum += loops.read_sum(data + begin, std::min(kPartBytes, size - begin));
  });
  return {seconds_since(start), sum.load()};
}

Rate float_rate(int threads, const Kernels* kernels) {
  const ProbeLoops& loops = find_loops(kernels);
  return best_rate(
      threads, loops.multiply_add_operations, loops.multiply_add_method, [&](int64_t rounds) {
        return loops.multiply_add(rounds, 1.0f);
      });
}

Rate int8_rate(int threads, const Kernels* kernels) {
  const ProbeLoops& loops = find_loops(kernels);
  return best_rate(threads, loops.dot_operations, loops.dot_method, [&](int64_t rounds) {
    return loops.dot(rounds, 1);
  });
}

}  // namespace gemma_surgery::cpu
