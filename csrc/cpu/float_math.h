// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// float32 vectors for the float kernels: fused multiply-add where the instruction set has it,
// exponentials, and whole rows to and from the stored number formats.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/floats.h"

namespace gemma_surgery::cpu::GS_ISA {

// Below every finite score: a running maximum starts here, so that differences stay defined.
constexpr float kLowest = -3.402823466e38f;

constexpr float kLog2E = 0x1.715476p+0f;

GS_INLINE Floats broadcast(float value) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_set1_ps(value);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(value);
#elif defined(GS_NEON)
  return (Floats)vdupq_n_f32(value);
#else
  return Floats{value, value, value, value};
#endif
}

// a * b + c, rounded once; the portable loops round the product too.
GS_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
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

// Adding and taking away 1.5 * 2^23 rounds |value| < 2^22 to the nearest integer.
constexpr float kRounder = 0x1.8p+23f;

// p * 2^n for the integer n that `shifted` - kRounder is; 0 where `exponent` < -126.
GS_INLINE Floats scaled_by_power(Floats p, Floats n, Floats shifted, Floats exponent) {
#if defined(__AVX512BW__)
  (void)shifted;
  const __mmask16 normal =
      _mm512_cmp_ps_mask((__m512)exponent, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (Floats)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  (void)n;
  const Floats power = float_from_bits((bits_of(shifted) + 127u) << 23);
  return select(exponent < broadcast(-126.0f), Floats{}, p * power);
#endif
}

// 2^x for x <= 0 within 1 ulp (1.3 without fused multiply-add); 0 below 2^-126, where
// subnormal factors would stall.
GS_INLINE Floats exp2_of_negative(Floats x) {
  const Floats shifted = x + broadcast(kRounder);
  const Floats n = shifted - broadcast(kRounder);
  const Floats f = x - n;
  Floats p = broadcast(0x1.470b4ap-13f);
  p = multiply_add(p, f, broadcast(0x1.5f7276p-10f));
  p = multiply_add(p, f, broadcast(0x1.3b270ep-7f));
  p = multiply_add(p, f, broadcast(0x1.c6ae72p-5f));
  p = multiply_add(p, f, broadcast(0x1.ebfbe2p-3f));
  p = multiply_add(p, f, broadcast(0x1.62e432p-1f));
  p = multiply_add(p, f, broadcast(1.0f));
  return scaled_by_power(p, n, shifted, x);
}

GS_INLINE float exp2_of_negative(float x) {
  return exp2_of_negative(broadcast(x))[0];
}

// e^x for |x| <= 87 within 1.5 ulp, for the larger ones the value at 87; NaN stays NaN.
GS_INLINE Floats exp_of(Floats x) {
  // The bound comes first: minimum and maximum give their second operand where one is NaN.
  x = minimum(broadcast(87.0f), maximum(broadcast(-87.0f), x));
  const Floats shifted = multiply_add(x, broadcast(kLog2E), broadcast(kRounder));
  const Floats n = shifted - broadcast(kRounder);
  // n has 8 bits and the first part of ln 2 has 15, so that their product is exact.
  Floats f = multiply_add(n, broadcast(-0x1.62e4p-1f), x);
  f = multiply_add(n, broadcast(-0x1.7f7d1cp-20f), f);
  Floats p = broadcast(0x1.709b92p-10f);
  p = multiply_add(p, f, broadcast(0x1.12904ep-7f));
  p = multiply_add(p, f, broadcast(0x1.55515ep-5f));
  p = multiply_add(p, f, broadcast(0x1.5553c0p-3f));
  p = multiply_add(p, f, broadcast(0x1.000002p-1f));
  p = multiply_add(p, f, broadcast(1.0f));
  p = multiply_add(p, f, broadcast(1.0f));
  return scaled_by_power(p, n, shifted, n);
}

template <Dtype kDtype>
GS_INLINE Floats load_fast(const uint8_t* from) {
#if defined(__AVX512BW__)
  if constexpr (kDtype == Dtype::F16) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
  }
#elif defined(__F16C__)
  if constexpr (kDtype == Dtype::F16) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
  }
#endif
  return load_stored<kDtype>(from);
}

template <Dtype kDtype>
static void read_floats_as(const uint8_t* from, int64_t count, float* to) {
  constexpr int kBytes = kStoredBytes<kDtype>;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(to + i, load_fast<kDtype>(from + i * kBytes));
  }
  if (i < count) {
#if defined(__AVX512BW__)
    const __mmask16 kept = (__mmask16)((1u << (count - i)) - 1u);
    Floats last;
    if constexpr (kDtype == Dtype::F32) {
      last = (Floats)_mm512_maskz_loadu_ps(kept, from + i * kBytes);
    } else {
      const __m256i halves = _mm256_maskz_loadu_epi16(kept, from + i * kBytes);
      last = load_fast<kDtype>((const uint8_t*)&halves);
    }
    _mm512_mask_storeu_ps(to + i, kept, (__m512)last);
#else
    uint8_t rest[4 * kWidth] = {};
    float values[kWidth];
    __builtin_memcpy(rest, from + i * kBytes, (size_t)((count - i) * kBytes));
    store(values, load_fast<kDtype>(rest));
    __builtin_memcpy(to + i, values, (size_t)(count - i) * sizeof(float));
#endif
  }
}

// Reads and writes exactly `count` values.
[[maybe_unused]] static void
read_floats(Dtype dtype, const uint8_t* from, int64_t count, float* to) {
  switch (dtype) {
    case Dtype::F16:
      return read_floats_as<Dtype::F16>(from, count, to);
    case Dtype::BF16:
      return read_floats_as<Dtype::BF16>(from, count, to);
    default:
      return read_floats_as<Dtype::F32>(from, count, to);
  }
}

template <Dtype kDtype>
static void write_floats_as(const float* from, int64_t count, uint8_t* to) {
  constexpr int kBytes = kStoredBytes<kDtype>;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store_stored<kDtype>(to + i * kBytes, stored_bits<kDtype>(load<Floats>(from + i)));
  }
  if (i < count) {
#if defined(__AVX512BW__)
    const __mmask16 kept = (__mmask16)((1u << (count - i)) - 1u);
    const Words last = stored_bits<kDtype>((Floats)_mm512_maskz_loadu_ps(kept, from + i));
    if constexpr (kDtype == Dtype::F32) {
      _mm512_mask_storeu_epi32(to + i * kBytes, kept, (__m512i)last);
    } else {
      _mm256_mask_storeu_epi16(to + i * kBytes, kept, _mm512_cvtepi32_epi16((__m512i)last));
    }
#else
    uint8_t rest[4 * kWidth];
    float values[kWidth] = {};
    __builtin_memcpy(values, from + i, (size_t)(count - i) * sizeof(float));
    store_stored<kDtype>(rest, stored_bits<kDtype>(load<Floats>(values)));
    __builtin_memcpy(to + i * kBytes, rest, (size_t)((count - i) * kBytes));
#endif
  }
}

[[maybe_unused]] static void
write_floats(Dtype dtype, const float* from, int64_t count, uint8_t* to) {
  switch (dtype) {
    case Dtype::F16:
      return write_floats_as<Dtype::F16>(from, count, to);
    case Dtype::BF16:
      return write_floats_as<Dtype::BF16>(from, count, to);
    default:
      return write_floats_as<Dtype::F32>(from, count, to);
  }
}

// One row; the row kAhead rows further is on its way by the time that it is needed.
template <int64_t kAhead>
GS_INLINE void
read_row_ahead(const Rows& rows, int64_t row, int64_t end, int64_t count, float* to) {
  const uint8_t* from = rows.data + row * rows.stride;
  if (row + kAhead < end) {
    for (int64_t byte = 0; byte < count * stored_bytes(rows.dtype); byte += 64) {
      __builtin_prefetch(from + kAhead * rows.stride + byte);
    }
  }
  read_floats(rows.dtype, from, count, to);
}

GS_INLINE void fill_zeros(float* to, int64_t count) {
  __builtin_memset(to, 0, (size_t)count * sizeof(float));
}

}  // namespace gemma_surgery::cpu::GS_ISA
