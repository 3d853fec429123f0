// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Elimination on panels: products of a block with a panel, substitution, and the factor of one
// block. kTileRows x kTileLanes sums stay in registers while the block is broadcast.

#pragma once

#include "cpu/solve_kernels.h"
#include "cpu/tile_product.h"
#include "cpu/transpose.h"

namespace gemma_surgery::cpu::GS_ISA {

static_assert(kSolveBlock % kTileLanes == 0);

// a * b + c, rounded once on every instruction set.
GS_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__FMA__) || defined(__AVX512BW__) || defined(GS_NEON)
  return multiply_add(a, b, c);
#else
  for (int lane = 0; lane < kWidth; ++lane) {
    c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  }
  return c;
#endif
}

// Adds `factor` times a row of lanes to another.
GS_INLINE void add_row(float factor, const float* from, float* to) {
  const Floats all = broadcast(factor);
  for (int v = 0; v < kTileLanes; v += kWidth) {
    store(to + v, fused(all, load<Floats>(from + v), load<Floats>(to + v)));
  }
}

template <int kRows>
static void subtract_rows(const float* a, const float* panel, int64_t depth, float* tile) {
  Floats sums[kRows][kTileVectors];
  clear(sums);
  for (int64_t d = 0; d < depth; ++d) {
    Floats lanes[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      lanes[v] = load<Floats>(panel + v * kWidth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats factor = broadcast(a[i * kSolveBlock]);
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        sums[i][v] = fused(factor, lanes[v], sums[i][v]);
      }
    }
    ++a;
    panel += kTileLanes;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      float* to = tile + i * kTileLanes + v * kWidth;
      store(to, load<Floats>(to) - sums[i][v]);
    }
  }
}

static void
subtract_product(const float* a, const float* panel, int64_t rows, int64_t depth, float* tile) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    subtract_rows<kTileRows>(a + r * kSolveBlock, panel, depth, tile + r * kTileLanes);
  }
  if (kTileRows > 4 && r + 4 <= rows) {
    subtract_rows<4>(a + r * kSolveBlock, panel, depth, tile + r * kTileLanes);
    r += 4;
  }
  for (; r < rows; ++r) {
    subtract_rows<1>(a + r * kSolveBlock, panel, depth, tile + r * kTileLanes);
  }
}

static void solve_lower(const float* a, int64_t rows, float* tile) {
  for (int64_t s = 0; s < rows; s += kSolveStrip) {
    const int64_t end = s + kSolveStrip < rows ? s + kSolveStrip : rows;
    subtract_product(a + s * kSolveBlock, tile, end - s, s, tile + s * kTileLanes);
    for (int64_t k = s; k < end; ++k) {
      float* const solved = tile + k * kTileLanes;
      const Floats inverse = broadcast(1.0f / a[k * kSolveBlock + k]);
      for (int v = 0; v < kTileLanes; v += kWidth) {
        store(solved + v, load<Floats>(solved + v) * inverse);
      }
      for (int64_t m = k + 1; m < end; ++m) {
        add_row(-a[m * kSolveBlock + k], solved, tile + m * kTileLanes);
      }
    }
  }
}

static bool cholesky_block(float* a, int64_t size) {
  // What vectors reach beyond the diagonal is never read.
  float column[kSolveBlock] = {};
  for (int64_t k = 0; k < size; ++k) {
    const float pivot = a[k * kSolveBlock + k];
    if (!(pivot > 0.0f)) {
      return false;
    }
    const float root = __builtin_sqrtf(pivot);
    const float inverse = 1.0f / root;
    a[k * kSolveBlock + k] = root;
    for (int64_t i = k + 1; i < size; ++i) {
      column[i] = a[i * kSolveBlock + k] * inverse;
      a[i * kSolveBlock + k] = column[i];
    }
    for (int64_t i = k + 1; i < size; ++i) {
      float* const row = a + i * kSolveBlock;
      const Floats factor = broadcast(-column[i]);
      int64_t j = k + 1;
      for (; j <= i && j + kWidth <= kSolveBlock; j += kWidth) {
        store(row + j, fused(factor, load<Floats>(column + j), load<Floats>(row + j)));
      }
      for (; j <= i; ++j) {
        row[j] = __builtin_fmaf(-column[i], column[j], row[j]);
      }
    }
  }
  return true;
}

static void
read_panel(const float* from, int64_t stride, int64_t rows, int64_t depth, float* panel) {
  for (int first = 0; first < kTileLanes; first += kWidth) {
    const float* const source = from + first * stride;
    float* const to = panel + first;
    int64_t d = 0;
    if (first + kWidth <= rows) {
      for (; d + 4 <= depth; d += 4) {
        Floats columns[4];
        four_columns((const uint8_t*)(source + d), stride * 4, columns);
        for (int c = 0; c < 4; ++c) {
          store(to + (d + c) * kTileLanes, columns[c]);
        }
      }
    }
    for (; d < depth; ++d) {
      for (int lane = 0; lane < kWidth; ++lane) {
        to[d * kTileLanes + lane] = first + lane < rows ? source[lane * stride + d] : 0.0f;
      }
    }
  }
}

static void
write_panel(const float* panel, int64_t rows, int64_t depth, float* to, int64_t stride) {
  int64_t d = 0;
  for (; d + kWidth <= depth; d += kWidth) {
    for (int lane = 0; lane < kTileLanes && lane < rows; lane += 4) {
      Floats columns[4];
      four_columns((const uint8_t*)(panel + d * kTileLanes + lane), kTileLanes * 4, columns);
      for (int c = 0; c < 4 && lane + c < rows; ++c) {
        store(to + (lane + c) * stride + d, columns[c]);
      }
    }
  }
  for (; d < depth; ++d) {
    for (int64_t lane = 0; lane < rows; ++lane) {
      to[lane * stride + d] = panel[d * kTileLanes + lane];
    }
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
