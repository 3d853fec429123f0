// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Norms, GELU and rotary embedding over rows of `cols` columns. Inputs and outputs may each
// be float32, float16 or bfloat16; `out` may be an input where dtype and stride agree.
//
// Numbers: float32, one rounding on store. Sums over a row run in 16 lanes by column, then a
// tree: norms give the same bits on every instruction set and number of threads.

#pragma once

#include <cstdint>

#include "cpu/attention.h"
#include "cpu/float_kernels.h"
#include "cpu/products.h"

namespace gemma_surgery::cpu {

// x / sqrt(mean(x^2) + eps) * scale; `scale` float32 [cols], nullptr: ones.
void rms_norm(
    const FloatRows& x,
    int64_t cols,
    const float* scale,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options);

// h + rms_norm(y): the end of a block and the residual stream, without the rounding between.
void add_rms_norm(
    const FloatRows& h,
    const FloatRows& y,
    int64_t cols,
    const float* scale,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options);

// (x - mean) / sqrt(variance + eps) * weight + bias, in two passes over the row; `weight` and
// `bias` float32 [cols] or nullptr.
void layer_norm(
    const FloatRows& x,
    int64_t cols,
    const float* weight,
    const float* bias,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options);

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), within 3 ulp for x > -1; below, where
// the result falls off to zero, its relative error grows to 2e-5 and 1e-7 of x bounds it.
void gelu_tanh(
    const FloatRows& x,
    int64_t cols,
    const MutableFloatRows& out,
    const FloatOptions& options);

// gelu_tanh(gate) * up, without the rounding between.
void gated_gelu(
    const FloatRows& gate,
    const FloatRows& up,
    int64_t cols,
    const MutableFloatRows& out,
    const FloatOptions& options);

struct RopeShape {
  int64_t batch;   // B
  int64_t heads;   // H
  int64_t tokens;  // T
  int64_t dim;     // D
  int64_t dims;    // the first so many are rotated, the others copied; even, at most D
};

// Rotates the pairs (i, i + dims / 2) by position / periods[i] radians; token t stands at
// position offset + t. `periods` float32 [dims / 2], infinite where a pair stays as it is.
// Angles, sines and cosines are computed in float64 and rounded to float32.
void rope(
    const RopeShape& shape,
    const HeadsView& x,
    const float* periods,
    int64_t offset,
    const MutableHeadsView& out,
    const FloatOptions& options);

}  // namespace gemma_surgery::cpu
