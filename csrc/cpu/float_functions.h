// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The float kernels that exist once per instruction set.

#pragma once

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

inline constexpr int64_t kMaxHeadDim = 512;

// Columns of a dense product that are added up before the sums of blocks are.
inline constexpr int64_t kDepthBlock = 128;

// Rows of the matrix that one tile of a dense product takes: a multiple of kTileLanes on
// every instruction set.
inline constexpr int64_t kDenseCols = 192;

// Up to so many queries a row of `attention` must not depend on the others, and products are
// limited by the reading of the matrix.
inline constexpr int64_t kFewQueries = 16;

// Keys that a row of `attention` for few queries takes as one block.
inline constexpr int64_t kKeyBlock = 512;

// Floats that GELU needs.
inline constexpr int64_t kGeluScratch = 2 * 1024 + kSlack;

// Keys of one tile of `attention` for many queries.
inline constexpr int64_t kKeyTile = 96;

// Part of a matrix: rows `stride` bytes apart.
struct Rows {
  const uint8_t* data;
  Dtype dtype;
  int64_t stride;
};

struct MutableRows {
  uint8_t* data;
  Dtype dtype;
  int64_t stride;
};

// `cols` <= kDenseCols rows of w times `rows` rows of x, over `depth` columns of both.
struct DenseTile {
  Rows w;
  Rows x;
  MutableRows out;
  const float* bias;  // [cols] or nullptr
  int64_t rows;
  int64_t cols;
  int64_t depth;
  float* scratch;  // dense_scratch(rows) floats
};

// What the T queries see: token t the keys from first[t] on, up to last[t] whatever its image,
// and up to reach[t] those of its own image; all keys in between where `allowed` says so.
struct Visibility {
  const int32_t* first;
  const int32_t* last;
  const int32_t* reach;
  const int32_t* image_blocks;  // [T] of the last T keys, or nullptr
  int64_t image_start;          // S - T: the key that image_blocks[0] belongs to
  const uint8_t* allowed;       // of the first head and token, or nullptr
  int64_t head_stride;
  int64_t query_stride;
  int64_t key_stride;
};

// The query heads that share one head of keys and values; `token` counts from the call's first.
struct AttentionHeads {
  Rows q;  // stride between tokens
  Rows k;
  Rows v;
  MutableRows out;
  int64_t q_head_stride;  // bytes
  int64_t out_head_stride;
  int64_t heads;
  int64_t dim;
  float factor;  // scale * log2(e): weights are powers of two
  Visibility visible;
};

// Maximum score, sum of weights and weighted sum of values of one block of keys.
struct BlockSums {
  float* data;  // [heads, tokens, blocks, stride]: the maximum, the sum, then dim values at 16
  int64_t stride;
  int64_t blocks;
};

struct FloatKernels {
  const char* name;
  int64_t lanes;  // of a tile: queries of attention, rows of the matrix of a dense product

  int64_t (*dense_scratch)(int64_t rows);
  void (*dense_tile)(const DenseTile& tile);

  // Tokens [begin, begin + count) of all heads; scratch of attention_scratch(...) floats.
  int64_t (*attention_scratch)(int64_t heads, int64_t count, int64_t dim);
  void (*attention_tile)(const AttentionHeads& heads, int64_t begin, int64_t count, float* scratch);

  // Block `block` of the keys of each of `tokens` <= kFewQueries tokens, into `sums`.
  int64_t (*attention_block_scratch)(int64_t heads, int64_t dim);
  void (*attention_block)(
      const AttentionHeads& heads,
      int64_t tokens,
      int64_t block,
      const BlockSums& sums,
      float* scratch);
  // One row of the result out of its blocks.
  void (*attention_merge)(
      const float* blocks,
      int64_t count,
      int64_t stride,
      int64_t dim,
      Dtype dtype,
      uint8_t* out);

  // One row each; `scratch` holds cols + kSlack floats.
  void (*rms_norm)(
      const Rows& h,  // added to the result; data nullptr: none
      const Rows& x,
      int64_t cols,
      const float* scale,
      float eps,
      const MutableRows& out,
      float* scratch);
  void (*layer_norm)(
      const Rows& x,
      int64_t cols,
      const float* weight,
      const float* bias,
      float eps,
      const MutableRows& out,
      float* scratch);
  void (*gelu)(
      const Rows& x,
      const Rows& up,  // data nullptr: none
      int64_t cols,
      const MutableRows& out,
      float* scratch);

  // Cosines and sines, [pairs] each, of position / periods.
  void (*rope_angles)(const float* periods, int64_t pairs, int64_t position, float* cos_sin);
  void (*rope_row)(
      const Rows& x,
      int64_t dim,
      int64_t pairs,
      const float* cos_sin,
      const MutableRows& out,
      float* scratch);
};

// The float kernels of a table; nullptr: the widest.
const FloatKernels& float_kernels(const Kernels* kernels);

}  // namespace gemma_surgery::cpu
