// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Sums of squares of the decoded values. Bytes moved: the encoded matrix once; the sums
// and one decoded row stay in cache.

#include "cpu/checks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

template <typename Use>
void for_each_row(
    const char* where,
    const Source& source,
    int64_t rows,
    int64_t cols,
    const Kernels& kernels,
    const Use& use) {
  const RowBytes row = check_source(where, source, rows, cols);
  const FloatMode mode;
  const Scratch scratch = thread_scratch(cols);
  for (int64_t r = 0; r < rows; ++r) {
    kernels.decode(
        source.encoding,
        source.weight.data + r * row.weight,
        source.scales.data + r * row.scales,
        source.biases.data + r * row.biases,
        cols,
        scratch,
        scratch.values);
    use(r, scratch.values);
  }
}

}  // namespace

void row_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels) {
  for_each_row("row_square_sums", source, rows, cols, kernels, [&](int64_t r, const float* values) {
    out[r] = kernels.square_sum(values, cols);
  });
}

void column_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels) {
  for_each_row(
      "column_square_sums", source, rows, cols, kernels, [&](int64_t, const float* values) {
        kernels.add_squares(values, cols, out);
      });
}

}  // namespace gemma_surgery::cpu
