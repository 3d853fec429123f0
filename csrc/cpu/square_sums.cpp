// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Sums of squares of the values. Bytes moved: the encoded matrix once; the sums and what is
// decoded stay in cache.

#include <algorithm>

#include "cpu/checks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

// Columns whose sums stay in the first-level cache while all rows are added.
constexpr int64_t kTileColumns = 1024;

}  // namespace

void row_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels) {
  const RowBytes row = check_source("row_square_sums", source, rows, cols);
  const FloatMode mode;
  const Scratch scratch = thread_scratch(cols);
  for (int64_t r = 0; r < rows; ++r) {
    out[r] = kernels.row_square_sum(
        source.encoding,
        source.weight.data + r * row.weight,
        source.scales.data + r * row.scales,
        source.biases.data + r * row.biases,
        cols,
        scratch);
  }
}

void column_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels) {
  const RowBytes row = check_source("column_square_sums", source, rows, cols);
  const FloatMode mode;
  const Scratch scratch = thread_scratch(std::min(cols, kTileColumns));
  for (int64_t first = 0; first < cols; first += kTileColumns) {
    const RowBytes start = row_bytes(source.encoding, first);
    const int64_t count = std::min(kTileColumns, cols - first);
    for (int64_t r = 0; r < rows; ++r) {
      kernels.add_row_squares(
          source.encoding,
          source.weight.data + r * row.weight + start.weight,
          source.scales.data + r * row.scales + start.scales,
          source.biases.data + r * row.biases + start.biases,
          count,
          scratch,
          out + first);
    }
  }
}

}  // namespace gemma_surgery::cpu
