// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// kWidth rows of 32-bit words to columns: each 128-bit lane of a register takes four words of a
// row of its own, so that transposing 4 x 4 words within the lanes is all that is left.

#pragma once

#include "cpu/float_math.h"

namespace gemma_surgery::cpu::GS_ISA {

// Four words of the rows r, r + 4, r + 8 ... that start at `from` and lie `stride` bytes apart.
GS_INLINE Floats four_of_rows(const uint8_t* from, int64_t stride) {
#if defined(__AVX512BW__)
  __m512 all = _mm512_castps128_ps512(_mm_loadu_ps((const float*)from));
  all = _mm512_insertf32x4(all, _mm_loadu_ps((const float*)(from + 4 * stride)), 1);
  all = _mm512_insertf32x4(all, _mm_loadu_ps((const float*)(from + 8 * stride)), 2);
  return (Floats)_mm512_insertf32x4(all, _mm_loadu_ps((const float*)(from + 12 * stride)), 3);
#elif defined(__AVX2__)
  const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps((const float*)from));
  return (Floats)_mm256_insertf128_ps(low, _mm_loadu_ps((const float*)(from + 4 * stride)), 1);
#else
  (void)stride;
  return load<Floats>(from);
#endif
}

// The first two or last two words of a and b in each lane, alternating.
GS_INLINE Floats interleave_low(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_unpacklo_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_unpacklo_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_unpacklo_ps((__m128)a, (__m128)b);
#elif defined(GS_NEON)
  return (Floats)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
#else
  return Floats{a[0], b[0], a[1], b[1]};
#endif
}

GS_INLINE Floats interleave_high(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_unpackhi_ps((__m128)a, (__m128)b);
#elif defined(GS_NEON)
  return (Floats)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
#else
  return Floats{a[2], b[2], a[3], b[3]};
#endif
}

// The first or last two words of each lane of a, then those of b.
GS_INLINE Floats join_low(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_castpd_ps(
      _mm512_unpacklo_pd(_mm512_castps_pd((__m512)a), _mm512_castps_pd((__m512)b)));
#elif defined(__AVX2__)
  return (Floats)_mm256_castpd_ps(
      _mm256_unpacklo_pd(_mm256_castps_pd((__m256)a), _mm256_castps_pd((__m256)b)));
#elif defined(__SSE2__)
  return (Floats)_mm_movelh_ps((__m128)a, (__m128)b);
#else
  return Floats{a[0], a[1], b[0], b[1]};
#endif
}

GS_INLINE Floats join_high(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_castpd_ps(
      _mm512_unpackhi_pd(_mm512_castps_pd((__m512)a), _mm512_castps_pd((__m512)b)));
#elif defined(__AVX2__)
  return (Floats)_mm256_castpd_ps(
      _mm256_unpackhi_pd(_mm256_castps_pd((__m256)a), _mm256_castps_pd((__m256)b)));
#elif defined(__SSE2__)
  return (Floats)_mm_movehl_ps((__m128)b, (__m128)a);
#else
  return Floats{a[2], a[3], b[2], b[3]};
#endif
}

// Word c of kWidth rows in row order, for four words c.
GS_INLINE void four_columns(const uint8_t* from, int64_t stride, Floats (&columns)[4]) {
  const Floats a = four_of_rows(from, stride);
  const Floats b = four_of_rows(from + stride, stride);
  const Floats c = four_of_rows(from + 2 * stride, stride);
  const Floats d = four_of_rows(from + 3 * stride, stride);
  const Floats ac = interleave_low(a, c);
  const Floats bd = interleave_low(b, d);
  const Floats ac_high = interleave_high(a, c);
  const Floats bd_high = interleave_high(b, d);
  columns[0] = interleave_low(ac, bd);
  columns[1] = interleave_high(ac, bd);
  columns[2] = interleave_low(ac_high, bd_high);
  columns[3] = interleave_high(ac_high, bd_high);
}

// The sums of the lanes of four vectors, each by the same tree.
GS_INLINE void sum_four(const Floats (&vectors)[4], float* sums) {
  const Floats ab =
      interleave_low(vectors[0], vectors[1]) + interleave_high(vectors[0], vectors[1]);
  const Floats cd =
      interleave_low(vectors[2], vectors[3]) + interleave_high(vectors[2], vectors[3]);
  const Floats all = join_low(ab, cd) + join_high(ab, cd);
#if defined(__AVX512BW__)
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256((__m512)all), _mm512_extractf32x8_ps((__m512)all, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
  _mm_storeu_ps(
      sums, _mm_add_ps(_mm256_castps256_ps128((__m256)all), _mm256_extractf128_ps((__m256)all, 1)));
#else
  store(sums, all);
#endif
}

}  // namespace gemma_surgery::cpu::GS_ISA
