// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The loops of the solver that exist once per instruction set.
//
// A panel [depth, lanes] holds one element of `lanes` independent systems per row, so that vectors
// run across systems and no sum is ever split among lanes. Every sum is one chain of fused
// multiply-adds, in ascending order: all tables give the same bits.

#pragma once

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// Unknowns that are eliminated together, and the stride of a block's rows: a multiple of the
// lanes of every instruction set.
inline constexpr int64_t kSolveBlock = 192;

// Columns that are rounded together: whole groups of every size.
inline constexpr int64_t kRoundBlock = 128;

// Unknowns that are eliminated one by one, where later ones see all earlier ones at once.
inline constexpr int64_t kSolveStrip = 8;

// Columns [first, end) of a tile that are rounded in turn, and what that takes.
struct RoundRun {
  const float* a;          // row j: U[d, j] of the columns d of the tile
  float* tile;             // [kRoundBlock, lanes] values
  float* errors;           // [kRoundBlock, lanes] errors over U[j, j]
  uint8_t* codes;          // [kRoundBlock, lanes]
  const float* fits;       // [groups, 3, lanes]: scale, bias and 1 / scale as stored
  const int32_t* columns;  // [kRoundBlock] of the matrix: they tell the group
  int64_t group_size;
  int64_t first;
  int64_t end;
  float last_code;
};

// One group of a panel whose scales and biases are to become better.
struct FitRun {
  const float* tile;     // [size, lanes] values
  const float* weights;  // [size] what a squared error of each column counts, 1 in all
  float* fit;            // [3, lanes]: scale, bias and 1 / scale as stored
  uint8_t* scales;       // [lanes] as stored
  uint8_t* biases;
  int64_t size;
  float last_code;
  Dtype dtype;
  bool is_symmetric;  // bias = -2^(bits-1) * scale
};

struct SolveKernels {
  const char* name;
  int64_t lanes;

  // `rows` <= lanes rows, `stride` floats apart, to the panel of their first `depth` columns;
  // further lanes are zero. And back.
  void (*read_panel)(const float* from, int64_t stride, int64_t rows, int64_t depth, float* panel);
  void (*write_panel)(const float* panel, int64_t rows, int64_t depth, float* to, int64_t stride);

  // tile[r] -= sum over d < depth of a[r, d] * panel[d], for `rows` rows of a block.
  void (*subtract_product)(
      const float* a,
      const float* panel,
      int64_t rows,
      int64_t depth,
      float* tile);

  // tile := A^-1 tile for the lower triangle A [rows, rows] of a block.
  void (*solve_lower)(const float* a, int64_t rows, float* tile);

  // The lower triangle of a block to its Cholesky factor, and what lies above to anything; false
  // where a pivot is not positive.
  bool (*cholesky_block)(float* a, int64_t size);

  // Rounds columns to the nearest codes and lets the later ones of the run make up for it.
  void (*round_run)(const RoundRun& run);

  // Lessens the weighted squared error of rounding a group to the nearest codes.
  void (*improve_fit)(const FitRun& run);

  // `count` codes, a multiple of 8, as MLX packs them.
  void (*pack_codes)(int bits, const uint8_t* codes, int64_t count, uint8_t* packed);
};

}  // namespace gemma_surgery::cpu
