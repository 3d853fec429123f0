// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/add_bias.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/encoding.h"
#include "cpu/thread_pool.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

void add_bias(
    const float* bias,
    int64_t cols,
    int64_t count,
    const MutableFloatRows& out,
    const ProductOptions& options) {
  const Kernels& kernels = options.kernels ? *options.kernels : find_kernels("");
  const Encoding encoding = {out.dtype, Mode::Dense, 0, 0};
  const int64_t row_bytes = out.stride * dtype_bytes(out.dtype);
  constexpr int64_t kRows = 16;  // per task
  parallel_tasks((count + kRows - 1) / kRows, options.threads, [&](int64_t task) {
    const FloatMode mode;
    const Scratch scratch = thread_scratch(cols);
    for (int64_t row = task * kRows; row < std::min(count, (task + 1) * kRows); ++row) {
      uint8_t* at = out.data + row * row_bytes;
      kernels.decode(encoding, at, nullptr, nullptr, cols, scratch, scratch.values);
      for (int64_t i = 0; i < cols; ++i) {
        scratch.values[i] += bias[i];
      }
      kernels.encode(
          encoding, scratch.values, cols, nullptr, false, scratch, {at, nullptr, nullptr});
    }
  });
}

}  // namespace gemma_surgery::cpu
