// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Dot products of unsigned codes with signed digits, four at a time into each 32-bit lane,
// exact in every instruction set, and the vector steps around them.

#pragma once

#include "cpu/codes.h"
#include "cpu/product_kernels.h"
#include "cpu/simd.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr int kBytes = 4 * kWidth;

typedef uint8_t Bytes __attribute__((vector_size(kBytes)));

// Out of line: unrolled sixteen-fold it would take the compiler minutes.
__attribute__((noinline, unused)) static Ints plain_dot4(Bytes codes, Bytes digits) {
  Ints sum = {};
  for (int lane = 0; lane < kWidth; ++lane) {
    for (int i = 4 * lane; i < 4 * lane + 4; ++i) {
      sum[lane] += (int32_t)codes[i] * (int8_t)digits[i];
    }
  }
  return sum;
}

// sum[lane] += codes[4 lane + i] * digits[4 lane + i], i < 4; codes lie below 2^kBits.
template <int kBits>
GS_INLINE Ints dot4(Ints sum, Bytes codes, Bytes digits) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)digits);
#elif defined(__AVX512BW__)
  if constexpr (kBits < 8) {
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, (__m512i)digits);
    return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  } else {
    // Pairs of 8-bit codes would saturate 16 bits.
    const __m512i low = _mm512_set1_epi16(0xFF);
    const __m512i even = _mm512_madd_epi16(
        _mm512_and_si512((__m512i)codes, low),
        _mm512_srai_epi16(_mm512_slli_epi16((__m512i)digits, 8), 8));
    const __m512i odd = _mm512_madd_epi16(
        _mm512_srli_epi16((__m512i)codes, 8), _mm512_srai_epi16((__m512i)digits, 8));
    return sum + (Ints)even + (Ints)odd;
  }
#elif defined(__AVX2__)
  if constexpr (kBits < 8) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)digits);
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  } else {
    const __m256i low = _mm256_set1_epi16(0xFF);
    const __m256i even = _mm256_madd_epi16(
        _mm256_and_si256((__m256i)codes, low),
        _mm256_srai_epi16(_mm256_slli_epi16((__m256i)digits, 8), 8));
    const __m256i odd = _mm256_madd_epi16(
        _mm256_srli_epi16((__m256i)codes, 8), _mm256_srai_epi16((__m256i)digits, 8));
    return sum + (Ints)even + (Ints)odd;
  }
#elif defined(GS_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
  return (Ints)vusdotq_s32((int32x4_t)sum, (uint8x16_t)codes, (int8x16_t)digits);
#elif defined(GS_NEON) && defined(__ARM_FEATURE_DOTPROD)
  if constexpr (kBits < 8) {
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)digits);
  } else {
    // Codes are taken as code - 128, and 128 times the digits is added back.
    const int8x16_t centred = (int8x16_t)(codes ^ (uint8_t)0x80);
    int32x4_t total = vdotq_s32((int32x4_t)sum, centred, (int8x16_t)digits);
    total = vdotq_s32(total, (int8x16_t)digits, vdupq_n_s8(127));
    return (Ints)vdotq_s32(total, (int8x16_t)digits, vdupq_n_s8(1));
  }
#elif defined(GS_NEON)
  const int8x16_t signed_digits = (int8x16_t)digits;
  const uint8x16_t plain = (uint8x16_t)codes;
  const int16x8_t low_codes = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(plain)));
  const int16x8_t high_codes = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(plain)));
  const int16x8_t low = vmovl_s8(vget_low_s8(signed_digits));
  const int16x8_t high = vmovl_s8(vget_high_s8(signed_digits));
  const int32x4_t a = vmull_s16(vget_low_s16(low_codes), vget_low_s16(low));
  const int32x4_t b = vmull_s16(vget_high_s16(low_codes), vget_high_s16(low));
  const int32x4_t c = vmull_s16(vget_low_s16(high_codes), vget_low_s16(high));
  const int32x4_t d = vmull_s16(vget_high_s16(high_codes), vget_high_s16(high));
  return sum + (Ints)vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
#elif defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  const __m128i bytes = (__m128i)digits;
  const __m128i low = _mm_madd_epi16(
      _mm_unpacklo_epi8((__m128i)codes, zero), _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8));
  const __m128i high = _mm_madd_epi16(
      _mm_unpackhi_epi8((__m128i)codes, zero), _mm_srai_epi16(_mm_unpackhi_epi8(bytes, bytes), 8));
  const __m128 even = _mm_shuffle_ps((__m128)low, (__m128)high, 0x88);
  const __m128 odd = _mm_shuffle_ps((__m128)low, (__m128)high, 0xDD);
  return sum + (Ints)even + (Ints)odd;
#else
  return sum + plain_dot4(codes, digits);
#endif
}

// Four bytes in every lane.
GS_INLINE Bytes repeat4(const void* from) {
  return (Bytes)words(load<uint32_t>(from));
}

// Level `kLevel` of a tree that adds neighbouring lanes of 2^levels vectors until every lane is
// a sum of its own: joins the sums of two vectors of the level below. The order in which they
// come out is that of the cheapest instructions, and `in_order` puts it right at the end.
template <int kLevel>
GS_INLINE Ints fold(Ints a, Ints b) {
#if defined(__AVX512BW__)
  if constexpr (kLevel < 2) {
    return (Ints)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88) +
           (Ints)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xDD);
  } else {
    return (Ints)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0x88) +
           (Ints)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0xDD);
  }
#elif defined(__AVX2__)
  // Adds within 128-bit halves; the order of the quarters is put right.
  return (Ints)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xD8);
#elif defined(GS_NEON)
  return (Ints)vpaddq_s32((int32x4_t)a, (int32x4_t)b);
#else
  return Ints{a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
#endif
}

// Lanes after `kLevels` of `fold`: those of the first vector first.
template <int kLevels>
GS_INLINE Ints in_order(Ints sums) {
#if defined(__AVX512BW__)
  // Bits of a lane's number, v of the vector and l of its lane there, highest first:
  // l3 l2 v0 l1, l3 l2 v1 v0 and v2 l3 v1 v0 after one, two and three levels.
  if constexpr (kLevels == 1) {
    const __m512i from = _mm512_set_epi32(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
    return (Ints)_mm512_permutexvar_epi32(from, (__m512i)sums);
  } else if constexpr (kLevels == 2) {
    const __m512i from = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return (Ints)_mm512_permutexvar_epi32(from, (__m512i)sums);
  } else if constexpr (kLevels == 3) {
    const __m512i from = _mm512_set_epi32(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
    return (Ints)_mm512_permutexvar_epi32(from, (__m512i)sums);
  }
#endif
  return sums;
}

#if defined(__AVX512VNNI__)
// Level 0 of `fold` for lanes of `a` and `b` that fit 16 bits, times kWeight, plus `sum`.
template <int kWeight>
GS_INLINE Ints fold_narrow(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpwssd_epi32(
      (__m512i)sum, _mm512_packs_epi32((__m512i)a, (__m512i)b), _mm512_set1_epi16(kWeight));
}
#endif

// Lanes of `a` and `b` in turn: of their lower halves, of their upper halves.
GS_INLINE Floats zip_low(Floats a, Floats b) {
#if defined(__AVX512BW__)
  const __m512i order = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Floats)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_permute2f128_ps(
      _mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b), 0x20);
#else
  return Floats{a[0], b[0], a[1], b[1]};
#endif
}

GS_INLINE Floats zip_high(Floats a, Floats b) {
#if defined(__AVX512BW__)
  const __m512i order =
      _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  return (Floats)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_permute2f128_ps(
      _mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b), 0x31);
#else
  return Floats{a[2], b[2], a[3], b[3]};
#endif
}

// Turns kWidth vectors into their transpose: each round of zips moves one bit of the index.
GS_INLINE void transpose(Floats* rows) {
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
    Floats zipped[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + kWidth / 2]);
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      rows[i] = zipped[i];
    }
  }
}

// a * b + c, rounded once.
GS_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(GS_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  for (int lane = 0; lane < kWidth; ++lane) {
    c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  }
  return c;
#endif
}

GS_INLINE Floats to_floats(Ints value) {
  return __builtin_convertvector(value, Floats);
}

// Asks for memory that is read soon.
GS_INLINE void prefetch(const void* address) {
  __builtin_prefetch(address, 0, 3);
}

// Asks for memory that is read later: into the second cache, which can wait for more of it.
GS_INLINE void prefetch_far(const void* address) {
  __builtin_prefetch(address, 0, 2);
}

// Vectors of codes that one packed step unfolds to.
template <int kBits>
constexpr int kUnfolded = unfolded_by(kBits);

template <int kBits>
constexpr int kStepCodes = kBytes * kUnfolded<kBits>;

template <int kBits>
constexpr int kStepBytes = kStepCodes<kBits> * kBits / 8;

template <int kBits>
GS_INLINE void unfold(const uint8_t* packed, Bytes* codes) {
  if constexpr (kBits == 8) {
    codes[0] = load<Bytes>(packed);
  } else if constexpr (kUnfolded<kBits> > 1) {
    const Words folded = load<Words>(packed);
    constexpr uint32_t kMask = kBits == 4 ? 0x0F0F0F0Fu : 0x03030303u;
    codes[0] = (Bytes)(folded & kMask);
    for (int s = 1; s < kUnfolded<kBits>; ++s) {
#if defined(__GFNI__) && defined(__AVX512BW__)
      // Shifts and masks in one: bit i of a byte becomes bit i + kBits s of what it was.
      const uint64_t bits = kBits == 4 ? 0x1020408000000000ull : 0x0102000000000000ull;
      codes[s] = (Bytes)_mm512_gf2p8affine_epi64_epi8(
          (__m512i)folded, _mm512_set1_epi64((int64_t)(kBits == 4 ? bits : bits << (2 * s))), 0);
#else
      codes[s] = (Bytes)((folded >> (uint32_t)(kBits * s)) & kMask);
#endif
    }
  } else {
#if defined(__AVX512VBMI__)
    // Eight codes are kBits bytes: those of each are spread to a 64-bit lane, then cut out.
    constexpr uint64_t kShifts = 0x0706050403020100ull * kBits;
    alignas(64) static constexpr struct Spread {
      uint8_t index[64];
      constexpr Spread() : index() {
        for (int i = 0; i < 64; ++i) {
          index[i] = (uint8_t)(i / 8 * kBits + i % 8);
        }
      }
    } kSpread;
    constexpr __mmask64 kRead = (uint64_t{1} << (8 * kBits)) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(kRead, packed);
    const __m512i spread = _mm512_permutexvar_epi8(load<__m512i>(kSpread.index), bytes);
    const __m512i shifted =
        _mm512_multishift_epi64_epi8(_mm512_set1_epi64((int64_t)kShifts), spread);
    codes[0] = (Bytes)_mm512_and_si512(shifted, _mm512_set1_epi8((1 << kBits) - 1));
#else
    uint8_t plain[kBytes];
    unpack_codes<kBits>(packed, kBytes, plain);
    codes[0] = load<Bytes>(plain);
#endif
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
