// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The loops of products with an affine matrix that exist once per instruction set.

#pragma once

#include <cstdint>

#include "cpu/products.h"

namespace gemma_surgery::cpu {

inline constexpr int kMaxPlanes = 3;

// Widths that divide a byte are unfolded by shifts, to this many vectors: vector s of a word
// of packed codes holds codes s, s + unfolded_by(bits), ...
constexpr int unfolded_by(int bits) {
  return bits == 2 ? 4 : bits == 4 ? 2 : 1;
}

// A panel is padded to a multiple of this many columns: no step unfolds more.
inline constexpr int64_t kPanelCols = 256;

// Rows of the matrix that `rows` works on at a time.
inline constexpr int64_t kRowBlock = 16;

// Rows of x as integers: x = unit * (sum over planes of digit * 256^(planes - 1 - plane)).
struct FixedPoint {
  int planes;            // 1 to kMaxPlanes, the most significant first
  const int8_t* digits;  // laid out for the loop that reads them
  int64_t row_bytes;     // of `digits` per row of x; unused by `tile`
  const float* units;    // [rows, groups, padded to padded_groups]
  const float* sums;     // the sums of x over each group, laid out as the units
  int64_t padded_groups;
};

struct ProductKernels {
  int64_t lanes;        // of the widest vector; groups and columns are padded to it
  int64_t tile_cols;    // rows of the matrix in a panel
  int64_t tile_digits;  // rows of digits in a tile: tile_digits / planes rows of x

  // One row of x, [cols], to digits [planes, cols] in order, and per group its unit and sum.
  void (*split)(
      const uint8_t* x,
      Dtype dtype,
      int64_t cols,
      int64_t group_size,
      int planes,
      int8_t* digits,
      float* units,
      float* sums);

  // Bytes of one row of digits as `rows` wants it, and its making from digits in order.
  int64_t (*row_bytes)(int32_t bits, int32_t group_size, int64_t cols, int planes);
  void (*arrange)(
      const int8_t* digits,
      int32_t bits,
      int32_t group_size,
      int64_t cols,
      int planes,
      int8_t* out);

  // out[t, i] = product of row t of x with row first + i of the matrix, i < count <= kRowBlock.
  // `partial` holds [x_rows, kRowBlock, padded_groups] floats.
  void (*rows)(
      const AffineMatrix& w,
      int64_t first,
      int64_t count,
      const FixedPoint& x,
      int64_t x_rows,
      float* partial,
      float* out,
      int64_t out_stride);

  // Rows first .. first + tile_cols of the matrix as quads of codes [cols / 4, tile_cols, 4],
  // each word of packed codes as unfolded_by(bits) quads, and float32 scales and biases
  // [groups, tile_cols]. What stands for rows beyond the end is unspecified.
  void (*pack)(const AffineMatrix& w, int64_t first, uint8_t* codes, float* scales, float* biases);

  // out[m, n] for tile_digits / planes rows of x and a panel; digits are quads like
  // the codes, [cols / 4, tile_digits, 4], with the planes of a row of x side by side.
  void (*tile)(
      const uint8_t* codes,
      const float* scales,
      const float* biases,
      int32_t bits,
      int64_t groups,
      int64_t group_size,
      const FixedPoint& x,
      float* out,
      int64_t out_stride);

  // Rounds `count` float32 values to `dtype`.
  void (*store)(Dtype dtype, const float* values, int64_t count, uint8_t* out);

  // values = cap * tanh(values / cap), and the sum of e^(value - largest) with the largest.
  // Both may write up to kLanes - 1 values past `count`.
  void (*softcap)(float* values, int64_t count, float cap);
  float (*exp_sum)(float* values, int64_t count, float* largest);
};

}  // namespace gemma_surgery::cpu
