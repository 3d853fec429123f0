// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What one thread needs to run row kernels: a known float mode, buffers, a share of rows.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// Round to nearest with subnormals kept, for as long as it lives: a caller or a library
// that turned on flush-to-zero would otherwise change results.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  uint64_t saved_;
};

// Buffers for rows of up to `cols` columns, kept by the calling thread for its next call.
Scratch thread_scratch(int64_t cols);

// Splits [0, rows) among `threads` threads, the caller included. The exception of the
// lowest rows is rethrown, so that a fault is reported the same for every thread count.
void parallel_rows(
    int64_t rows,
    int threads,
    const std::function<void(int64_t begin, int64_t end)>& work);

}  // namespace gemma_surgery::cpu
