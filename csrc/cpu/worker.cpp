// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/worker.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gemma_surgery::cpu {

namespace {

uint64_t float_control() {
#if defined(__x86_64__)
  return _mm_getcsr();
#elif defined(__aarch64__)
  uint64_t value = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(value));
  return value;
#else
  return 0;
#endif
}

void set_float_control(uint64_t value) {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<unsigned>(value));
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(value));
#else
  (void)value;
#endif
}

#if defined(__x86_64__)
constexpr uint64_t kPlainMode = 0x1F80;  // all exceptions masked
#else
constexpr uint64_t kPlainMode = 0;
#endif

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

struct FreeAligned {
  void operator()(void* pointer) const {
    ::operator delete(pointer, std::align_val_t(kAlignment));
  }
};

}  // namespace

FloatMode::FloatMode() : saved_(float_control()) {
  set_float_control(kPlainMode);
}

FloatMode::~FloatMode() {
  set_float_control(saved_);
}

Scratch thread_scratch(int64_t cols) {
  thread_local std::unique_ptr<void, FreeAligned> storage;
  thread_local int64_t capacity = -1;
  const int64_t row = aligned((cols + kSlack) * static_cast<int64_t>(sizeof(float)));
  const int64_t codes = aligned(cols + kSlack);
  constexpr int64_t kSmallestGroup = 16;
  const int64_t groups =
      aligned((cols / kSmallestGroup + kSlack) * static_cast<int64_t>(sizeof(float)));
  const int64_t needed = 2 * row + codes + (5) * groups;
  if (needed > capacity) {
    storage.reset();
    capacity = -1;
    storage.reset(::operator new(static_cast<size_t>(needed), std::align_val_t(kAlignment)));
    capacity = needed;
  }
  auto* next = static_cast<uint8_t*>(storage.get());
  auto take = [&next](int64_t bytes) {
    uint8_t* start = next;
    next += bytes;
    return start;
  };
  Scratch scratch;
  scratch.values = reinterpret_cast<float*>(take(row));
  scratch.gathered = reinterpret_cast<float*>(take(row));
  scratch.codes = take(codes);
  scratch.scales = reinterpret_cast<float*>(take(groups));
  scratch.biases = reinterpret_cast<float*>(take(groups));
  scratch.inverses = reinterpret_cast<float*>(take(groups));
  scratch.minima = reinterpret_cast<float*>(take(groups));
  scratch.maxima = reinterpret_cast<float*>(take(groups));
  return scratch;
}

void parallel_rows(int64_t rows, int threads, const std::function<void(int64_t, int64_t)>& work) {
  const int64_t count = std::clamp<int64_t>(threads, 1, std::max<int64_t>(rows, 1));
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  auto run = [&](int64_t part) {
    try {
      FloatMode mode;
      work(rows * part / count, rows * (part + 1) / count);
    } catch (...) {
      errors[static_cast<size_t>(part)] = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  int64_t started = 1;
  try {
    for (; started < count; ++started) {
      helpers.emplace_back(run, started);
    }
  } catch (const std::exception&) {
    // No more threads to be had: the caller does their share below.
  }
  run(0);
  for (int64_t part = started; part < count; ++part) {
    run(part);
  }
  for (std::thread& helper : helpers) {
    helper.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

}  // namespace gemma_surgery::cpu
