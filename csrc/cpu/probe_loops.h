// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Loops that do nothing but keep memory or the multipliers busy, at the width of one
// instruction set. Included only by the probes_*.cpp files.

#pragma once

#include "cpu/probe_table.h"
#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr int kLine = 64;
constexpr int kBlock = 4 * kLine;
// The hardware prefetcher stops at every page: this far ahead covers its restart.
constexpr int kAhead = 2048;

// Enough chains to hide a latency of four cycles in two multipliers, on Apple's cores four.
// Compilers unroll up to 16, which keeps the chains in registers.
#if defined(GS_NEON)
constexpr int kChains = 16;
#else
constexpr int kChains = 12;
#endif

static uint32_t read_sum(const uint8_t* data, int64_t size) {
  constexpr int kSums = 4;
  Words sums[kSums] = {};
  for (int64_t at = 0; at < size; at += kBlock) {
    for (int line = 0; line < kBlock; line += kLine) {
      __builtin_prefetch(data + at + kAhead + line);
    }
    for (int i = 0; i < kBlock / (int)sizeof(Words); ++i) {
      sums[i % kSums] += load<Words>(data + at + i * (int)sizeof(Words));
    }
  }
  const Words all = sums[0] + sums[1] + sums[2] + sums[3];
  uint32_t sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    sum += all[lane];
  }
  return sum;
}

GS_INLINE Floats multiply_add_once(Floats a, Floats b, Floats c) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(GS_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Every chain tends to 2: no subnormals, no infinities.
static float multiply_add(int64_t rounds, float value) {
  Floats chains[kChains];
  for (int i = 0; i < kChains; ++i) {
    chains[i] = splat(value + (float)i);
  }
  const Floats half = splat(0.5f * value);
  const Floats one = splat(value);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) {
      chains[i] = multiply_add_once(chains[i], half, one);
    }
  }
  Floats sum = chains[0];
  for (int i = 1; i < kChains; ++i) {
    sum += chains[i];
  }
  return lowest_lane(sum);
}

// Adds products of the bytes of `a` and `b`, kDotProducts of them in each lane.
#if defined(GS_VNNI)
constexpr int kDotProducts = 4;
GS_INLINE Ints dot_once(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif defined(GS_NEON)
constexpr int kDotProducts = 4;
GS_INLINE Ints dot_once(Ints sum, Ints a, Ints b) {
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}
#elif defined(__AVX512BW__)
constexpr int kDotProducts = 4;
GS_INLINE Ints dot_once(Ints sum, Ints a, Ints b) {
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)(b ^ sum));
  return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#elif defined(__AVX2__)
constexpr int kDotProducts = 4;
GS_INLINE Ints dot_once(Ints sum, Ints a, Ints b) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)(b ^ sum));
  return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr int kDotProducts = 1;
GS_INLINE Ints dot_once(Ints sum, Ints a, Ints b) {
  return sum + a * (b ^ sum);
}
#endif

static int32_t dot(int64_t rounds, int32_t value) {
  Words chains[kChains];
  for (int i = 0; i < kChains; ++i) {
    chains[i] = words((uint32_t)(value + i));
  }
  const Ints a = (Ints)words((uint32_t)value);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) {
      chains[i] = (Words)dot_once((Ints)chains[i], a, a);
    }
  }
  Words sum = chains[0];
  for (int i = 1; i < kChains; ++i) {
    sum += chains[i];
  }
  return (int32_t)sum[0];
}

constexpr int64_t kMultiplyAddOperations = 2 * kChains * kWidth;
constexpr int64_t kDotOperations = 2 * kChains * kWidth * kDotProducts;

}  // namespace gemma_surgery::cpu::GS_ISA
