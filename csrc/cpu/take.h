// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Columns of a decoded row by index.

#pragma once

#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

// Kept columns mostly lie close together: then two loads and a permutation take the place
// of one load per lane. Reads up to kSlack values from a column on.
static void gather(const float* source, const int32_t* columns, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  for (; i + 16 <= count; i += 16) {
    const __m512i index = _mm512_loadu_si512(columns + i);
    const float* near = source + columns[i];
    const __m512i step = _mm512_sub_epi32(index, _mm512_set1_epi32(columns[i]));
    if (_mm512_cmpge_epu32_mask(step, _mm512_set1_epi32(32)) == 0) {
      const __m512 taken =
          _mm512_permutex2var_ps(_mm512_loadu_ps(near), step, _mm512_loadu_ps(near + 16));
      _mm512_storeu_ps(out + i, taken);
    } else {
      _mm512_storeu_ps(out + i, _mm512_i32gather_ps(index, source, 4));
    }
  }
#elif defined(__AVX2__)
  for (; i + 8 <= count; i += 8) {
    const __m256i index = _mm256_loadu_si256((const __m256i*)(columns + i));
    const float* near = source + columns[i];
    const __m256i step = _mm256_sub_epi32(index, _mm256_set1_epi32(columns[i]));
    if (_mm256_testz_si256(step, _mm256_set1_epi32(~15))) {
      const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(near), step);
      const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(near + 8), step);
      const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(step, 28));
      _mm256_storeu_ps(out + i, _mm256_blendv_ps(low, high, is_high));
    } else {
      for (int lane = 0; lane < 8; ++lane) {
        out[i + lane] = source[columns[i + lane]];
      }
    }
  }
#endif
  for (; i < count; ++i) {
    out[i] = source[columns[i]];
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
