// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Plain data shared by all kernels: how the rows of one matrix [rows, cols] are laid out.

#pragma once

#include <stdint.h>

namespace gemma_surgery::cpu {

enum class Dtype : uint8_t { F32, F16, BF16, U8 };

enum class Mode : uint8_t {
  Dense,      // one element of `dtype` per column
  Affine,     // w = code * scale + bias, MLX's packing and formula
  Symmetric,  // the affine layout with bias = -2^(bits-1) * scale
  Mxfp4,      // E2M1 codes, one E8M0 scale per 32 columns
  Nvfp4,      // E2M1 codes, one E4M3 scale per 16 columns
  Mxfp8,      // E4M3 codes, one E8M0 scale per 32 columns
};

// `dtype` is the element type of a dense matrix, else the type of scales and biases.
struct Encoding {
  Dtype dtype;
  Mode mode;
  int32_t bits;
  int32_t group_size;
};

// Bytes of one row; 0 where the encoding has no such part.
struct RowBytes {
  int64_t weight;
  int64_t scales;
  int64_t biases;
};

}  // namespace gemma_surgery::cpu
