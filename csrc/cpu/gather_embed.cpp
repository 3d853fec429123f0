// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Rows of a quantized table by token id. Bytes moved: each packed row once, each row of the
// result once; a row is decoded, scaled and rounded in the first-level cache.

#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/encoding.h"
#include "cpu/products.h"
#include "cpu/thread_pool.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

// Below this many values a second thread costs more than it saves.
constexpr int64_t kValuesPerTask = 32 * 1024;

int64_t row_of(int32_t id, const int32_t* token_map, int64_t map_size) {
  if (!token_map) {
    return id;
  }
  return id >= 0 && id < map_size ? token_map[id] : -1;
}

}  // namespace

void gather_embed(
    const AffineMatrix& w,
    const int32_t* ids,
    int64_t count,
    const int32_t* token_map,
    int64_t map_size,
    float scale,
    const MutableFloatRows& out,
    const ProductOptions& options) {
  const Kernels& kernels = options.kernels ? *options.kernels : find_kernels("");
  const Encoding source = {w.dtype, Mode::Affine, w.bits, w.group_size};
  const RowBytes row = row_bytes(source, w.cols);
  const int64_t element = dtype_bytes(out.dtype);
  const int64_t out_bytes = out.stride * element;
  const int64_t rows_per_task = std::max<int64_t>(kValuesPerTask / w.cols, 1);
  const int64_t tasks = (count + rows_per_task - 1) / rows_per_task;
  parallel_tasks(tasks, options.threads, [&](int64_t task) {
    const FloatMode mode;
    const Scratch scratch = thread_scratch(w.cols);
    for (int64_t i = task * rows_per_task; i < std::min(count, (task + 1) * rows_per_task); ++i) {
      const int64_t at = row_of(ids[i], token_map, map_size);
      if (at < 0 || at >= w.rows) {
        // All bits set is NaN in every stored dtype.
        std::memset(out.data + i * out_bytes, 0xFF, static_cast<size_t>(w.cols * element));
        continue;
      }
      kernels.embed(
          source,
          w.weight + at * row.weight,
          w.scales + at * row.scales,
          w.biases + at * row.biases,
          w.cols,
          scale,
          scratch,
          out.dtype,
          out.data + i * out_bytes);
    }
  });
}

}  // namespace gemma_surgery::cpu
