// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// How a product with an affine matrix is cut into tasks: spans of its rows, each walked in
// blocks, so that a consumer sees finished values of up to kBlockRows rows at a time.

#pragma once

#include <cstdint>

#include "cpu/product_kernels.h"

namespace gemma_surgery::cpu {

// Rows of the matrix whose products are handed out together.
inline constexpr int64_t kBlockRows = 128;

// Takes products of row `t` of x with rows first .. first + count of the matrix. Calls for one
// span come from one thread at a time, in the order of `first`; spans run in parallel.
class Consumer {
 public:
  virtual ~Consumer() = default;
  virtual void take(int64_t span, int64_t t, int64_t first, int64_t count, float* values) = 0;
};

// Runs all products. A span is `span_rows` rows, a multiple of kBlockRows.
void run_products(
    const AffineMatrix& w,
    const FloatRows& x,
    int64_t span_rows,
    const ProductOptions& options,
    Consumer& consumer);

}  // namespace gemma_surgery::cpu
