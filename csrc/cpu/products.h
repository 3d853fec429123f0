// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products with a matrix in MLX's affine format, out[t, v] = sum over e of x[t, e] * w[v, e],
// and what is read off them without writing them down.
//
// Numbers: each group of x is taken as integers times one power of two, 24 bits for float32
// and 16 bits for the halves; their products with the codes are summed exactly in integers,
// then scaled and added over groups in float32, in the order of groups. A result depends on
// its own row of x and row of w alone: not on the number of rows, on threads or on the
// instruction set.

#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// Rows of packed codes with their scales and biases, all contiguous.
struct AffineMatrix {
  const uint8_t* weight;  // [rows, cols * bits / 8] bytes
  const uint8_t* scales;  // [rows, cols / group_size] of `dtype`
  const uint8_t* biases;  // the same
  Dtype dtype;            // F32, F16 or BF16
  int32_t bits;           // 2, 3, 4, 5, 6 or 8
  int32_t group_size;     // 32, 64 or 128, a divisor of cols
  int64_t rows;
  int64_t cols;
};

// `count` rows of floating point numbers, `stride` elements apart.
struct FloatRows {
  const uint8_t* data;
  Dtype dtype;
  int64_t count;
  int64_t stride;
};

struct MutableFloatRows {
  uint8_t* data;
  Dtype dtype;
  int64_t stride;
};

// How many bits of x enter the integer products.
enum class Activations : uint8_t {
  Full,   // 24 for float32, 16 for float16 and bfloat16
  Int16,  // 16
  Int8,   // 8, with a scale of its own per group: fast and coarse
};

struct ProductOptions {
  const Kernels* kernels = nullptr;  // nullptr: the widest
  int threads = 0;                   // 0: one per processor
  Activations activations = Activations::Full;
};

// out[t, v], rounded once from float32 to out.dtype.
void quantized_product(
    const AffineMatrix& w,
    const FloatRows& x,
    const MutableFloatRows& out,
    const ProductOptions& options);

// The head of a language model: logits[t, v] = softcap * tanh(product / softcap), softcap 0: none.
struct Head {
  AffineMatrix matrix;
  float softcap = 0;
};

void tied_logits(
    const Head& head,
    const FloatRows& x,
    const MutableFloatRows& out,
    const ProductOptions& options);

// The k largest logits of each row of x, largest first, ties by the lower row of the head;
// values[t, k] float32, ids[t, k] are rows, or original_ids[row] where given. 1 <= k <= rows.
// NaN counts as larger than everything, as in mx.argmax.
void tied_topk(
    const Head& head,
    const FloatRows& x,
    int64_t k,
    const int32_t* original_ids,
    float* values,
    int32_t* ids,
    const ProductOptions& options);

// The logit of row targets[t] minus the logarithm of the sum of exponentials over all rows,
// and that logarithm itself. A target of -1 (a token without a row) has -infinity.
void tied_logprob(
    const Head& head,
    const FloatRows& x,
    const int32_t* targets,
    float* log_probs,
    float* log_sums,
    const ProductOptions& options);

// The largest logit of each row of x among the rows of the head that ids[row] does not give -1
// (all without ids): ids[row], or the row itself, and its logit minus the logarithm of the sum of
// exponentials over the same rows. Ties go to the lower row; -1 where no row is allowed.
void tied_choice(
    const Head& head,
    const FloatRows& x,
    const int32_t* ids,
    int32_t* chosen,
    float* log_probs,
    const ProductOptions& options);

// out[i, :] = scale * row token_map[ids[i]] of w (ids[i] itself without a map), decoded in
// float32 and rounded once; NaN for ids outside the map or the table.
void gather_embed(
    const AffineMatrix& w,
    const int32_t* ids,
    int64_t count,
    const int32_t* token_map,
    int64_t map_size,
    float scale,
    const MutableFloatRows& out,
    const ProductOptions& options);

}  // namespace gemma_surgery::cpu
