// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Float sums in a fixed order: 16 lanes by column, then a tree, whatever the width.

#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

typedef float Quad __attribute__((vector_size(16)));

// Lanes 0 to 3 of the first two levels of the tree: lane + 8, then + 4.
GS_INLINE Quad fold_lanes(const Floats (&parts)[kLanes / kWidth]) {
#if defined(__AVX512BW__)
  const __m512 all = (__m512)parts[0];
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return (Quad)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
  const __m256 half = (__m256)(parts[0] + parts[1]);
  return (Quad)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  return (Quad)((parts[0] + parts[2]) + (parts[1] + parts[3]));
#endif
}

// Sum of 16 float lanes held as kLanes / kWidth vectors, by a fixed tree.
GS_INLINE float sum_lanes(const Floats (&parts)[kLanes / kWidth]) {
  const Quad quad = fold_lanes(parts);
  return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

}  // namespace gemma_surgery::cpu::GS_ISA
