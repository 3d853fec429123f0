// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One tile of a dense product. Per kDepthBlock columns, kTileLanes rows of w at a time are turned
// into a panel [kDepthBlock, kTileLanes] of float32, which stays in the first-level cache while
// all rows of x pass by. Reads of w are short runs of many rows: the next ones are prefetched.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/tile_product.h"
#include "cpu/transpose.h"

namespace gemma_surgery::cpu::GS_ISA {

static_assert(kDenseCols % kTileLanes == 0);

constexpr int64_t kPanel = kDepthBlock * kTileLanes;

static int64_t dense_scratch(int64_t rows) {
  return rows * (kDepthBlock + kDenseCols) + kPanel + kWidth * kDepthBlock;
}

// Columns [0, depth) of kWidth rows of float32 words into a panel.
static void transpose_floats(const uint8_t* from, int64_t stride, int64_t depth, float* panel) {
  for (int64_t d = 0; d < depth; d += 4) {
    Floats columns[4];
    four_columns(from + d * 4, stride, columns);
    for (int c = 0; c < 4; ++c) {
      store(panel + (d + c) * kTileLanes, columns[c]);
    }
  }
}

// Lanes whose low 16 bits are a stored number.
template <Dtype kDtype>
GS_INLINE Floats widened(Words halves) {
#if defined(__AVX512BW__)
  if constexpr (kDtype == Dtype::F16) {
    return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)halves));
  }
#endif
  return stored_value<kDtype>(halves & 0xFFFFu);
}

// The same of 16-bit numbers: a word holds two columns.
template <Dtype kDtype>
static void transpose_halves(const uint8_t* from, int64_t stride, int64_t depth, float* panel) {
  for (int64_t d = 0; d < depth; d += 8) {
    Floats columns[4];
    four_columns(from + d * 2, stride, columns);
    for (int c = 0; c < 4; ++c) {
      store(panel + (d + 2 * c) * kTileLanes, widened<kDtype>(bits_of(columns[c])));
      store(panel + (d + 2 * c + 1) * kTileLanes, widened<kDtype>(bits_of(columns[c]) >> 16));
    }
  }
}

// `count` <= kWidth rows of w from byte column 0 on; `staged` holds [kWidth, kDepthBlock].
static void
pack_rows(const Rows& w, int64_t count, int64_t depth, int64_t ahead, float* staged, float* panel) {
  const int64_t block_bytes = depth * stored_bytes(w.dtype);
  for (int64_t i = 0; i < count && ahead > 0; ++i) {
    for (int64_t byte = 0; byte < ahead; byte += 64) {
      __builtin_prefetch(w.data + i * w.stride + block_bytes + byte);
    }
  }
  if (count == kWidth && depth % 8 == 0) {
    switch (w.dtype) {
      case Dtype::F16:
        return transpose_halves<Dtype::F16>(w.data, w.stride, depth, panel);
      case Dtype::BF16:
        return transpose_halves<Dtype::BF16>(w.data, w.stride, depth, panel);
      default:
        return transpose_floats(w.data, w.stride, depth, panel);
    }
  }
  for (int64_t i = 0; i < kWidth; ++i) {
    if (i < count) {
      read_floats(w.dtype, w.data + i * w.stride, depth, staged + i * kDepthBlock);
    } else {
      fill_zeros(staged + i * kDepthBlock, depth);
    }
  }
  const int64_t padded = (depth + 3) / 4 * 4;
  for (int64_t i = 0; i < kWidth && padded > depth; ++i) {
    fill_zeros(staged + i * kDepthBlock + depth, padded - depth);
  }
  transpose_floats((const uint8_t*)staged, kDepthBlock * 4, padded, panel);
}

// Adds the products of kRows rows of x with one panel to kTileLanes columns of `sums`.
template <int kRows>
static void
multiply_rows(const float* x, const float* panel, int64_t depth, bool first, float* sums) {
  Floats block[kRows][kTileVectors];
  clear(block);
  tile_product<kRows, kDepthBlock, 1>(x, panel, depth, block);
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kTileVectors; ++v) {
      float* to = sums + i * kDenseCols + v * kWidth;
      store(to, first ? block[i][v] : load<Floats>(to) + block[i][v]);
    }
  }
}

static void multiply_panel(
    const float* x,
    const float* panel,
    int64_t rows,
    int64_t depth,
    bool first,
    float* sums) {
  int64_t t = 0;
  for (; t + kTileRows <= rows; t += kTileRows) {
    multiply_rows<kTileRows>(x + t * kDepthBlock, panel, depth, first, sums + t * kDenseCols);
  }
  if (kTileRows > 4 && t + 4 <= rows) {
    multiply_rows<4>(x + t * kDepthBlock, panel, depth, first, sums + t * kDenseCols);
    t += 4;
  }
  if (t + 2 <= rows) {
    multiply_rows<2>(x + t * kDepthBlock, panel, depth, first, sums + t * kDenseCols);
    t += 2;
  }
  if (t < rows) {
    multiply_rows<1>(x + t * kDepthBlock, panel, depth, first, sums + t * kDenseCols);
  }
}

static void dense_tile(const DenseTile& tile) {
  float* const sums = tile.scratch;
  float* const x = sums + tile.rows * kDenseCols;
  float* const panel = x + tile.rows * kDepthBlock;
  float* const staged = panel + kPanel;
  const int64_t x_bytes = stored_bytes(tile.x.dtype);
  const int64_t w_bytes = stored_bytes(tile.w.dtype);
  const int64_t panels = (tile.cols + kTileLanes - 1) / kTileLanes;
  if (tile.depth == 0) {
    fill_zeros(sums, tile.rows * kDenseCols);
  }
  for (int64_t d = 0; d < tile.depth; d += kDepthBlock) {
    const int64_t rest = tile.depth - d;
    const int64_t depth = rest < kDepthBlock ? rest : kDepthBlock;
    const int64_t beyond = rest - depth < kDepthBlock ? rest - depth : kDepthBlock;
    for (int64_t t = 0; t < tile.rows; ++t) {
      read_floats(
          tile.x.dtype, tile.x.data + t * tile.x.stride + d * x_bytes, depth, x + t * kDepthBlock);
    }
    for (int64_t p = 0; p < panels; ++p) {
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t row = p * kTileLanes + v * kWidth;
        const int64_t left = tile.cols - row;
        const int64_t count = left < 0 ? 0 : left < kWidth ? left : kWidth;
        const Rows w = {
            tile.w.data + row * tile.w.stride + d * w_bytes, tile.w.dtype, tile.w.stride};
        pack_rows(w, count, depth, beyond * w_bytes, staged, panel + v * kWidth);
      }
      multiply_panel(x, panel, tile.rows, depth, d == 0, sums + p * kTileLanes);
    }
  }
  for (int64_t t = 0; t < tile.rows; ++t) {
    float* row = sums + t * kDenseCols;
    if (tile.bias != nullptr) {
      for (int64_t i = 0; i < tile.cols; ++i) {
        row[i] += tile.bias[i];
      }
    }
    write_floats(tile.out.dtype, row, tile.cols, tile.out.data + t * tile.out.stride);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
