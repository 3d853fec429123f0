// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Sums in a fixed order. Squares of float32 values are exact in double, so the only
// roundings are those of the additions, whose order does not depend on the width.

#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

typedef double Doubles __attribute__((vector_size(4 * kWidth)));
typedef float HalfFloats __attribute__((vector_size(2 * kWidth)));
constexpr int kDoubles = kWidth / 2;

GS_INLINE Doubles load_doubles(const float* from) {
  return __builtin_convertvector(load<HalfFloats>(from), Doubles);
}

static double square_sum(const float* values, int64_t count) {
  constexpr int kParts = kLanes / kDoubles;
  Doubles sums[kParts] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      const Doubles value = load_doubles(values + i + part * kDoubles);
      sums[part] += value * value;
    }
  }
  double lanes[kLanes];
  __builtin_memcpy(lanes, sums, sizeof(lanes));
  for (int lane = 0; i + lane < count; ++lane) {
    lanes[lane] += (double)values[i + lane] * (double)values[i + lane];
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

static void add_squares(const float* values, int64_t count, double* out) {
  int64_t i = 0;
  for (; i + kDoubles <= count; i += kDoubles) {
    const Doubles value = load_doubles(values + i);
    store(out + i, load<Doubles>(out + i) + value * value);
  }
  for (; i < count; ++i) {
    out[i] += (double)values[i] * (double)values[i];
  }
}

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

// The same for four sums at once.
GS_INLINE void sum_lanes4(const Floats (&sums)[4][kLanes / kWidth], float* out) {
  const Quad a = fold_lanes(sums[0]);
  const Quad b = fold_lanes(sums[1]);
  const Quad c = fold_lanes(sums[2]);
  const Quad d = fold_lanes(sums[3]);
#if defined(__SSE2__)
  const __m128 ab =
      _mm_add_ps(_mm_movelh_ps((__m128)a, (__m128)b), _mm_movehl_ps((__m128)b, (__m128)a));
  const __m128 cd =
      _mm_add_ps(_mm_movelh_ps((__m128)c, (__m128)d), _mm_movehl_ps((__m128)d, (__m128)c));
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD)));
#else
  out[0] = (a[0] + a[2]) + (a[1] + a[3]);
  out[1] = (b[0] + b[2]) + (b[1] + b[3]);
  out[2] = (c[0] + c[2]) + (c[1] + c[3]);
  out[3] = (d[0] + d[2]) + (d[1] + d[3]);
#endif
}

static void gather(const float* source, const int32_t* columns, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  for (; i + 16 <= count; i += 16) {
    const __m512i index = _mm512_loadu_si512(columns + i);
    _mm512_storeu_ps(out + i, _mm512_i32gather_ps(index, source, 4));
  }
#endif
  for (; i < count; ++i) {
    out[i] = source[columns[i]];
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
