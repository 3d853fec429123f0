// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/dense_product.h"

#include <algorithm>

#include "cpu/buffers.h"
#include "cpu/checks.h"
#include "cpu/float_functions.h"
#include "cpu/sizes.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "dense_product";

// Rows of x in one task: their float32 copy and sums share the second-level cache with w.
constexpr int64_t kTileRowsOfX = 384;

void check(const DenseMatrix& w, const FloatRows& x) {
  if (w.rows < 0 || w.cols < 0 || x.count < 0) {
    fail(
        kWhere,
        "need sizes of at least 0, got a matrix [" + std::to_string(w.rows) + ", " +
            std::to_string(w.cols) + "] and " + std::to_string(x.count) + " rows");
  }
}

}  // namespace

void dense_product(
    const DenseMatrix& w,
    const FloatRows& x,
    const float* bias,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check(w, x);
  if (w.rows == 0 || x.count == 0) {
    return;
  }
  const FloatKernels& kernels = float_kernels(options.kernels);
  const int64_t tile_rows = std::min(x.count, kTileRowsOfX);
  const int64_t row_tiles = divided_up(x.count, tile_rows);
  // Four tasks per thread keep all of them busy to the end. With few rows of x tasks are narrow,
  // so that each reads a few rows of w from end to end.
  const int64_t lanes = kernels.lanes;
  const int64_t workers = options.threads > 0 ? options.threads : available_threads();
  const int64_t fair = w.rows * row_tiles / (4 * workers) / lanes * lanes;
  const int64_t tile_cols =
      x.count <= kFewQueries ? lanes : std::clamp<int64_t>(fair, lanes, kDenseCols);
  const int64_t col_tiles = divided_up(w.rows, tile_cols);
  const int64_t w_stride = w.stride * bytes_of(w.dtype);
  const int64_t x_stride = x.stride * bytes_of(x.dtype);
  const int64_t out_bytes = bytes_of(out.dtype);
  parallel_tasks(row_tiles * col_tiles, options.threads, [&](int64_t task) {
    const int64_t first_row = task % row_tiles * tile_rows;
    const int64_t first_col = task / row_tiles * tile_cols;
    const int64_t rows = std::min(tile_rows, x.count - first_row);
    DenseTile tile;
    tile.w = {w.data + first_col * w_stride, w.dtype, w_stride};
    tile.x = {x.data + first_row * x_stride, x.dtype, x_stride};
    tile.out = {
        out.data + (first_row * out.stride + first_col) * out_bytes,
        out.dtype,
        out.stride * out_bytes};
    tile.bias = bias != nullptr ? bias + first_col : nullptr;
    tile.rows = rows;
    tile.cols = std::min(tile_cols, w.rows - first_col);
    tile.depth = w.cols;
    tile.scratch = thread_buffer<float>(Purpose::Tile, kernels.dense_scratch(rows));
    kernels.dense_tile(tile);
  });
}

}  // namespace gemma_surgery::cpu
