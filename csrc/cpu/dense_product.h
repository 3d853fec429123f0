// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products with a dense matrix, out[t, n] = bias[n] + sum over k of x[t, k] * w[n, k].
//
// Numbers: columns are taken in blocks of 128; within a block products are added one after the
// other in float32, each with one rounding (fused multiply-add), then the sums of the blocks
// are added in order, then the bias. A result depends on its own row of x and row of w
// alone: not on the number of rows or on threads. Instruction sets with fused multiply-add
// (AVX-512, AVX2, NEON) agree bit for bit; the portable loops round each product as well.

#pragma once

#include <cstdint>

#include "cpu/float_kernels.h"
#include "cpu/products.h"

namespace gemma_surgery::cpu {

// Rows [rows, cols] of floating point numbers, `stride` elements apart.
struct DenseMatrix {
  const uint8_t* data;
  Dtype dtype;  // F32, F16 or BF16
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

// `bias` float32 [w.rows] or nullptr; x has w.cols columns, out x.count rows of w.rows columns.
void dense_product(
    const DenseMatrix& w,
    const FloatRows& x,
    const float* bias,
    const MutableFloatRows& out,
    const FloatOptions& options);

}  // namespace gemma_surgery::cpu
