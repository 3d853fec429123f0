// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/solve_blocks.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/checks.h"
#include "cpu/dispatch.h"
#include "cpu/sizes.h"

namespace gemma_surgery::cpu {

namespace {

// Rows that one task looks at or copies.
constexpr int64_t kRowsPerTask = 16;

}  // namespace

Floats64 make_floats(int64_t count) {
  const auto bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
  return Floats64(static_cast<float*>(::operator new(bytes, std::align_val_t(64))));
}

const SolveKernels& solve_kernels(const Kernels* kernels) {
  return *(kernels != nullptr ? *kernels : find_kernels("")).solve;
}

void check_finite(
    const char* where,
    const char* what,
    const float* data,
    int64_t rows,
    int64_t cols,
    int threads) {
  std::atomic<bool> finite{true};
  parallel_tasks(divided_up(rows, kRowsPerTask), threads, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask) * cols;
    // An exponent of all ones carries into the sign bit.
    uint32_t carried = 0;
    for (int64_t i = task * kRowsPerTask * cols; i < end; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, data + i, sizeof(bits));
      carried |= (bits & 0x7FFFFFFFu) + 0x00800000u;
    }
    if ((carried & 0x80000000u) != 0) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite.load(std::memory_order_relaxed)) {
    fail(where, std::string("need a finite ") + what + ", got an infinity or not-a-number");
  }
}

void check_square(const char* where, const float* data, int64_t size, int threads) {
  if (size < 1) {
    fail(where, "need a square matrix of at least 1 column, got " + std::to_string(size));
  }
  check_finite(where, "matrix", data, size, size, threads);
}

void check_factor(const char* where, const float* data, int64_t size, int threads) {
  check_square(where, data, size, threads);
  for (int64_t i = 0; i < size; ++i) {
    if (!(data[i * size + i] > 0.0f)) {
      fail(
          where,
          "need a factor with a positive diagonal, got " + std::to_string(data[i * size + i]) +
              " in column " + std::to_string(i));
    }
  }
}

void pack_blocks(
    const float* matrix,
    int64_t size,
    int64_t first,
    int64_t rows,
    int64_t depth,
    float* blocks,
    int threads) {
  parallel_tasks(divided_up(rows, kRowsPerTask), threads, [&](int64_t task) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) {
      const float* const row = matrix + (first + r) * size;
      for (int64_t d = 0; d < depth; d += kSolveBlock) {
        const int64_t count = std::min(kSolveBlock, depth - d);
        std::memcpy(
            blocks + d * kSolveBlock + r * kSolveBlock,
            row + d,
            static_cast<size_t>(count) * sizeof(float));
      }
    }
  });
}

}  // namespace gemma_surgery::cpu
