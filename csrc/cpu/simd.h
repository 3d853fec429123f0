// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The few vector operations that the kernels need, at the width of one instruction set.
// Included only by the kernels_*.cpp files, each compiled with its own flags, and placed
// in a namespace of its own: a function compiled for AVX-512 never serves another file.
// Standard library templates are avoided here for the same reason.

#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON) && !defined(GS_PORTABLE)
#include <arm_neon.h>
#define GS_NEON 1
#endif

// Instrumented code is for finding faults: out of line it compiles in half the time.
#if defined(GS_SANITIZED)
#define GS_INLINE static inline
#else
#define GS_INLINE static inline __attribute__((always_inline))
#endif

namespace gemma_surgery::cpu::GS_ISA {

#if defined(__AVX512BW__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));

template <typename T>
GS_INLINE T load(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
GS_INLINE void store(void* to, T value) {
  __builtin_memcpy(to, &value, sizeof(T));
}

GS_INLINE Floats splat(float value) {
  return Floats{} + value;
}

GS_INLINE Words words(uint32_t value) {
  return Words{} + value;
}

GS_INLINE Words bits_of(Floats value) {
  return (Words)value;
}

GS_INLINE Floats float_from_bits(Words value) {
  return (Floats)value;
}

GS_INLINE Floats to_floats(Words value) {
  return __builtin_convertvector((Ints)value, Floats);
}

// Lane-wise mask ? a : b, where a mask lane is all ones or all zeros.
GS_INLINE Floats select(Ints mask, Floats a, Floats b) {
  return mask ? a : b;
}

GS_INLINE Words select(Ints mask, Words a, Words b) {
  return mask ? a : b;
}

GS_INLINE Floats absolute(Floats value) {
  return float_from_bits(bits_of(value) & 0x7FFFFFFFu);
}

GS_INLINE Floats minimum(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_min_ps((__m128)a, (__m128)b);
#elif defined(GS_NEON)
  return (Floats)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a < b ? a : b;
#endif
}

GS_INLINE Floats maximum(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(GS_NEON)
  return (Floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a > b ? a : b;
#endif
}

// Bit patterns of non-negative floats compare like the floats, and NaN above all.
GS_INLINE Words larger_magnitude(Words a, Words b) {
#if defined(__AVX512BW__)
  return (Words)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  return (Ints)a > (Ints)b ? a : b;
#endif
}

GS_INLINE Words widen_bytes(const uint8_t* from) {
#if defined(__AVX512BW__)
  return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  const __m128i bytes = _mm_cvtsi32_si128(load<int32_t>(from));
  return (Words)_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero);
#elif defined(GS_NEON)
  const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(load<uint32_t>(from)));
  return (Words)vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
#else
  return Words{from[0], from[1], from[2], from[3]};
#endif
}

GS_INLINE Words widen_halves(const void* from) {
#if defined(__AVX512BW__)
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__SSE2__)
  return (Words)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)from), _mm_setzero_si128());
#elif defined(GS_NEON)
  return (Words)vmovl_u16(load<uint16x4_t>(from));
#else
  uint16_t halves[4];
  __builtin_memcpy(halves, from, sizeof(halves));
  return Words{halves[0], halves[1], halves[2], halves[3]};
#endif
}

// Stores the low byte of each lane.
GS_INLINE void narrow_bytes(uint8_t* to, Words value) {
#if defined(__AVX512BW__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)value));
#elif defined(__AVX2__)
  const __m256i low = _mm256_and_si256((__m256i)value, _mm256_set1_epi32(0xFF));
  const __m128i halves =
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(halves, halves));
#elif defined(__SSE2__)
  const __m128i low = _mm_and_si128((__m128i)value, _mm_set1_epi32(0xFF));
  const __m128i halves = _mm_packs_epi32(low, low);
  store<int32_t>(to, _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves)));
#elif defined(GS_NEON)
  const uint16x4_t halves = vmovn_u32((uint32x4_t)value);
  const uint8x8_t bytes = vmovn_u16(vcombine_u16(halves, halves));
  store<uint32_t>(to, vget_lane_u32(vreinterpret_u32_u8(bytes), 0));
#else
  for (int lane = 0; lane < kWidth; ++lane) {
    to[lane] = (uint8_t)value[lane];
  }
#endif
}

// Stores the low half of each lane.
GS_INLINE void narrow_halves(void* to, Words value) {
#if defined(__AVX512BW__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)value));
#elif defined(__AVX2__)
  const __m256i low = _mm256_and_si256((__m256i)value, _mm256_set1_epi32(0xFFFF));
  _mm_storeu_si128(
      (__m128i*)to,
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
#elif defined(__SSE2__)
  // SSE2 packs with signed saturation only, so the halves are sign-extended first.
  const __m128i low = _mm_srai_epi32(_mm_slli_epi32((__m128i)value, 16), 16);
  _mm_storel_epi64((__m128i*)to, _mm_packs_epi32(low, low));
#elif defined(GS_NEON)
  store(to, vmovn_u32((uint32x4_t)value));
#else
  uint16_t halves[4];
  for (int lane = 0; lane < kWidth; ++lane) {
    halves[lane] = (uint16_t)value[lane];
  }
  __builtin_memcpy(to, halves, sizeof(halves));
#endif
}

GS_INLINE float lowest_lane(Floats value) {
#if defined(__AVX512BW__)
  return _mm512_reduce_min_ps((__m512)value);
#elif defined(GS_NEON)
  return vminvq_f32((float32x4_t)value);
#else
  float lowest = value[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    lowest = value[lane] < lowest ? value[lane] : lowest;
  }
  return lowest;
#endif
}

GS_INLINE float highest_lane(Floats value) {
#if defined(__AVX512BW__)
  return _mm512_reduce_max_ps((__m512)value);
#elif defined(GS_NEON)
  return vmaxvq_f32((float32x4_t)value);
#else
  float highest = value[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    highest = value[lane] > highest ? value[lane] : highest;
  }
  return highest;
#endif
}

// The highest lane of bit patterns of magnitudes, NaN included.
GS_INLINE uint32_t highest_bits(Words value) {
  uint32_t highest = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    highest = value[lane] > highest ? value[lane] : highest;
  }
  return highest;
}

// The lowest lane of one vector and the highest of another, folded together.
GS_INLINE void lowest_highest(Floats low, Floats high, float* lowest, float* highest) {
#if defined(__AVX512BW__) || defined(__AVX2__)
#if defined(__AVX512BW__)
  const __m512 a = (__m512)low;
  const __m512 b = (__m512)-high;
  const __m512 mixed = _mm512_insertf32x8(a, _mm512_castps512_ps256(b), 1);
  const __m512 folded = _mm512_min_ps(mixed, _mm512_shuffle_f32x4(a, b, 0xEE));
  const __m256 swapped = _mm512_castps512_ps256(_mm512_shuffle_f32x4(folded, folded, 0x08));
  const __m256 other = _mm512_castps512_ps256(_mm512_shuffle_f32x4(folded, folded, 0x0D));
  __m256 least = _mm256_min_ps(swapped, other);
#else
  const __m256 a = (__m256)low;
  const __m256 b = (__m256)-high;
  __m256 least =
      _mm256_min_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#endif
  least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4E));
  least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xB1));
  *lowest = _mm256_cvtss_f32(least);
  *highest = -_mm_cvtss_f32(_mm256_extractf128_ps(least, 1));
#else
  *lowest = lowest_lane(low);
  *highest = highest_lane(high);
#endif
}

}  // namespace gemma_surgery::cpu::GS_ISA
