// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Exact sums in 16-bit lanes. Integer sums have no roundings, so these operations are free
// to take lanes in any order: the results do not depend on the width.

#pragma once

#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr int kShorts = 2 * kWidth;

typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(4 * kWidth)));

GS_INLINE Shorts shorts(int value) {
  return Shorts{} + (int16_t)value;
}

// Wraps, as every one of these does where it is not said otherwise.
GS_INLINE Shorts add(Shorts a, Shorts b) {
  return (Shorts)((Halves)a + (Halves)b);
}

GS_INLINE Shorts subtract(Shorts a, Shorts b) {
  return (Shorts)((Halves)a - (Halves)b);
}

GS_INLINE Shorts shift_left(Shorts a, int count) {
  return (Shorts)((Halves)a << (uint16_t)count);
}

GS_INLINE Shorts shift_right(Shorts a, int count) {
  return a >> (int16_t)count;
}

GS_INLINE Shorts clamp(Shorts value, Shorts low, Shorts high) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_min_epi16(_mm512_max_epi16((__m512i)value, (__m512i)low), (__m512i)high);
#elif defined(__AVX2__)
  return (Shorts)_mm256_min_epi16(_mm256_max_epi16((__m256i)value, (__m256i)low), (__m256i)high);
#elif defined(__SSE2__)
  return (Shorts)_mm_min_epi16(_mm_max_epi16((__m128i)value, (__m128i)low), (__m128i)high);
#elif defined(GS_NEON)
  return (Shorts)vminq_s16(vmaxq_s16((int16x8_t)value, (int16x8_t)low), (int16x8_t)high);
#else
  value = value > low ? value : low;
  return value < high ? value : high;
#endif
}

// Both vectors to the nearest integers, ties to even, saturated; in any order.
GS_INLINE Shorts to_shorts(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_packs_epi32(_mm512_cvtps_epi32((__m512)a), _mm512_cvtps_epi32((__m512)b));
#elif defined(__AVX2__)
  return (Shorts)_mm256_packs_epi32(_mm256_cvtps_epi32((__m256)a), _mm256_cvtps_epi32((__m256)b));
#elif defined(__SSE2__)
  return (Shorts)_mm_packs_epi32(_mm_cvtps_epi32((__m128)a), _mm_cvtps_epi32((__m128)b));
#elif defined(GS_NEON)
  return (Shorts)vcombine_s16(
      vqmovn_s32(vcvtnq_s32_f32((float32x4_t)a)), vqmovn_s32(vcvtnq_s32_f32((float32x4_t)b)));
#else
  Shorts result;
  for (int lane = 0; lane < kWidth; ++lane) {
    float first = a[lane] < 32767.0f ? a[lane] : 32767.0f;
    float second = b[lane] < 32767.0f ? b[lane] : 32767.0f;
    first = first > -32768.0f ? first : -32768.0f;
    second = second > -32768.0f ? second : -32768.0f;
    result[lane] = (int16_t)(int32_t)((first + 12582912.0f) - 12582912.0f);
    result[lane + kWidth] = (int16_t)(int32_t)((second + 12582912.0f) - 12582912.0f);
  }
  return result;
#endif
}

// Bytes to one vector, in order.
GS_INLINE Shorts widen_to_shorts(const uint8_t* from) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
#elif defined(__SSE2__)
  return (Shorts)_mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i*)from), _mm_setzero_si128());
#elif defined(GS_NEON)
  return (Shorts)vreinterpretq_s16_u16(vmovl_u8(load<uint8x8_t>(from)));
#else
  Shorts result;
  for (int lane = 0; lane < kShorts; ++lane) {
    result[lane] = (int16_t)from[lane];
  }
  return result;
#endif
}

// (a * b + 2^14) >> 15; not for -2^15 times itself.
GS_INLINE Shorts multiply_high(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Shorts)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  const Halves high = (Halves)_mm_mulhi_epi16((__m128i)a, (__m128i)b);
  const Halves low = (Halves)a * (Halves)b;
  return (Shorts)(((high << 1) | (low >> 15)) + ((low >> 14) & (uint16_t)1));
#elif defined(GS_NEON)
  return (Shorts)vqrdmulhq_s16((int16x8_t)a, (int16x8_t)b);
#else
  Shorts result;
  for (int lane = 0; lane < kShorts; ++lane) {
    result[lane] = (int16_t)(((int32_t)a[lane] * b[lane] + (1 << 14)) >> 15);
  }
  return result;
#endif
}

// Sums of two products each.
GS_INLINE Words multiply_pairs(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
  return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(GS_NEON)
  const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return (Words)vmlal_s16(low, vget_high_s16((int16x8_t)a), vget_high_s16((int16x8_t)b));
#else
  Words result;
  for (int lane = 0; lane < kWidth; ++lane) {
    result[lane] = (uint32_t)((int32_t)a[lane] * b[lane]) +
                   (uint32_t)((int32_t)a[lane + kWidth] * b[lane + kWidth]);
  }
  return result;
#endif
}

#if defined(__AVX512BW__)
// The halves of a and of b folded: [a, b].
GS_INLINE __m512i fold_halves(Words a, Words b) {
  const __m512i low = _mm512_inserti64x4((__m512i)a, _mm512_castsi512_si256((__m512i)b), 1);
  const __m512i high = _mm512_shuffle_i64x2((__m512i)a, (__m512i)b, 0xEE);
  return _mm512_add_epi32(low, high);
}

GS_INLINE __m512i fold_quarters(__m512i ab, __m512i cd) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
}
#elif defined(__SSE2__) && !defined(__AVX2__)
GS_INLINE __m128i fold_four(const Words* sums) {
  const __m128i a = (__m128i)sums[0];
  const __m128i b = (__m128i)sums[1];
  const __m128i c = (__m128i)sums[2];
  const __m128i d = (__m128i)sums[3];
  const __m128i ab = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
  const __m128i cd = _mm_add_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
  return _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
}
#endif

// out[k] = the sum of the lanes of sums[k].
GS_INLINE void add_lanes8(const Words (&sums)[8], int32_t* out) {
#if defined(__AVX512BW__)
  const __m512i abcd = fold_quarters(fold_halves(sums[0], sums[1]), fold_halves(sums[2], sums[3]));
  const __m512i efgh = fold_quarters(fold_halves(sums[4], sums[5]), fold_halves(sums[6], sums[7]));
  __m512i all =
      _mm512_add_epi32(_mm512_unpacklo_epi64(abcd, efgh), _mm512_unpackhi_epi64(abcd, efgh));
  all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, (_MM_PERM_ENUM)0xB1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_si256((__m256i*)out, _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, all)));
#elif defined(__AVX2__)
  const __m256i ab = _mm256_hadd_epi32((__m256i)sums[0], (__m256i)sums[1]);
  const __m256i cd = _mm256_hadd_epi32((__m256i)sums[2], (__m256i)sums[3]);
  const __m256i ef = _mm256_hadd_epi32((__m256i)sums[4], (__m256i)sums[5]);
  const __m256i gh = _mm256_hadd_epi32((__m256i)sums[6], (__m256i)sums[7]);
  const __m256i abcd = _mm256_hadd_epi32(ab, cd);
  const __m256i efgh = _mm256_hadd_epi32(ef, gh);
  _mm256_storeu_si256(
      (__m256i*)out,
      _mm256_add_epi32(
          _mm256_permute2x128_si256(abcd, efgh, 0x20),
          _mm256_permute2x128_si256(abcd, efgh, 0x31)));
#elif defined(__SSE2__)
  _mm_storeu_si128((__m128i*)out, fold_four(sums));
  _mm_storeu_si128((__m128i*)(out + 4), fold_four(sums + 4));
#else
  for (int k = 0; k < 8; ++k) {
    uint32_t sum = 0;
    for (int lane = 0; lane < kWidth; ++lane) {
      sum += sums[k][lane];
    }
    out[k] = (int32_t)sum;
  }
#endif
}

}  // namespace gemma_surgery::cpu::GS_ISA
