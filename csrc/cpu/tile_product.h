// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The inner loop of all float products: kTileRows x kTileLanes sums stay in registers while
// one operand is broadcast and the other loaded as vectors,
//   sums[i][lane] += a[i * kRowStep + d * kDepthStep] * b[d * b_step + lane], d ascending.
// 24 sums on AVX-512 and NEON, 12 on AVX2 and SSE2, fill their register files.

#pragma once

#include "cpu/float_math.h"

namespace gemma_surgery::cpu::GS_ISA {

#if defined(__AVX512BW__) || defined(GS_NEON)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;
constexpr int kTileLanes = kTileVectors * kWidth;

// One by one: an initializer would go through memory.
template <int kRows, int kVectors>
GS_INLINE void clear(Floats (&sums)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = Floats{};
    }
  }
}

template <int kRows, int kRowStep, int kDepthStep>
GS_INLINE void
tile_product(const float* a, const float* b, int64_t depth, Floats (&sums)[kRows][kTileVectors]) {
  for (int64_t d = 0; d < depth; ++d) {
    Floats lanes[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      lanes[v] = load<Floats>(b + v * kWidth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats factor = broadcast(a[i * kRowStep]);
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        sums[i][v] = multiply_add(factor, lanes[v], sums[i][v]);
      }
    }
    a += kDepthStep;
    b += kTileLanes;
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
