// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Short cuts for 4-bit codes, the common case, where vectors of 8 or 16 lanes can take
// them from their packed form and put them back without one byte per code in between.
// Same operations on the same values as the general path, so the same bits.

#pragma once

#include "cpu/floats.h"

namespace gemma_surgery::cpu::GS_ISA {

// Codes that are packed at a time.
constexpr int kPackedNibbles = 64;

#if defined(__AVX512BW__)

constexpr bool kNibbles = true;

// code * scale + bias has 16 values, so one table per group holds them all.
template <int kGroup>
static void decode_nibbles(
    const uint8_t* packed,
    const float* scales,
    const float* biases,
    int64_t groups,
    float* out) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Words shifts = (lanes & 7u) << 2;
  const Floats codes = to_floats(lanes);
  for (int64_t g = 0; g < groups; ++g) {
    const Floats table = codes * splat(scales[g]) + splat(biases[g]);
    for (int i = 0; i < kGroup; i += 16) {
      const __m128i both = _mm_loadl_epi64((const __m128i*)(packed + (g * kGroup + i) / 2));
      const Words word =
          (Words)_mm512_permutexvar_epi32((__m512i)(lanes >> 3), _mm512_castsi128_si512(both));
      // The permutation reads the lowest four bits of each index.
      store(
          out + g * kGroup + i,
          (Floats)_mm512_permutexvar_ps((__m512i)(word >> shifts), (__m512)table));
    }
  }
}

// steps(part) gives 16 values of at most 15 plus a half; all 64 are rounded and packed.
template <typename Steps>
GS_INLINE void pack_nibbles(const Steps& steps, uint8_t* packed) {
  const auto codes = [&](int part) { return _mm512_cvtps_epi32((__m512)steps(part)); };
  const __m512i bytes = _mm512_packus_epi16(
      _mm512_packs_epi32(codes(0), codes(1)), _mm512_packs_epi32(codes(2), codes(3)));
  const __m256i pairs =
      _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001)));
  // Four 16-bit quarters of each part lie apart, one per 128-bit lane.
  const __m256i order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm256_storeu_si256((__m256i*)packed, _mm256_permutexvar_epi16(order, pairs));
}

#elif defined(__AVX2__)

constexpr bool kNibbles = true;

template <int kGroup>
static void decode_nibbles(
    const uint8_t* packed,
    const float* scales,
    const float* biases,
    int64_t groups,
    float* out) {
  const Words shifts = {0, 4, 8, 12, 16, 20, 24, 28};
  for (int64_t g = 0; g < groups; ++g) {
    const Floats scale = splat(scales[g]);
    const Floats bias = splat(biases[g]);
    for (int i = 0; i < kGroup; i += 8) {
      const Words word = words(load<uint32_t>(packed + (g * kGroup + i) / 2));
      store(out + g * kGroup + i, to_floats((word >> shifts) & 15u) * scale + bias);
    }
  }
}

// steps(part) gives 8 values of at most 15 plus a half; all 64 are rounded and packed.
template <typename Steps>
GS_INLINE void pack_nibbles(const Steps& steps, uint8_t* packed) {
  const auto codes = [&](int part) { return _mm256_cvtps_epi32((__m256)steps(part)); };
  const auto pairs = [&](int part) {
    const __m256i bytes = _mm256_packus_epi16(
        _mm256_packs_epi32(codes(part), codes(part + 1)),
        _mm256_packs_epi32(codes(part + 2), codes(part + 3)));
    return _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
  };
  const __m256i all = _mm256_packus_epi16(pairs(0), pairs(4));
  // The low halves of all parts, then the high ones.
  const __m128i low = _mm256_castsi256_si128(all);
  const __m128i high = _mm256_extracti128_si256(all, 1);
  _mm_storeu_si128((__m128i*)packed, _mm_unpacklo_epi16(low, high));
  _mm_storeu_si128((__m128i*)(packed + 16), _mm_unpackhi_epi16(low, high));
}

#else

constexpr bool kNibbles = false;

#endif

}  // namespace gemma_surgery::cpu::GS_ISA
