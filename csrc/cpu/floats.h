// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// float32 to and from the stored number formats, one vector at a time, in integer
// arithmetic: the same bits with or without hardware support for the format.

#pragma once

#include "cpu/simd.h"
#include "cpu/types.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr uint32_t kInfinityBits = 0x7F800000u;
constexpr uint32_t kMagnitudeBits = 0x7FFFFFFFu;

// Rounds |value| < 2^22 to the nearest integer, ties to even; larger ones are left alone.
GS_INLINE Floats round_even(Floats value) {
  const Floats magnitude = absolute(value);
  const Floats rounded = (magnitude + 8388608.0f) - 8388608.0f;
  const Words sign = bits_of(value) & 0x80000000u;
  const Words result = select(magnitude < splat(8388608.0f), bits_of(rounded), bits_of(magnitude));
  return float_from_bits(result | sign);
}

// One NaN for all: which NaN an operation makes differs between processors.
constexpr uint32_t kQuietNan = 0x7FC00000u;

GS_INLINE Ints is_nan(Floats value) {
  return (Ints)(bits_of(value) & kMagnitudeBits) > (Ints)words(kInfinityBits);
}

GS_INLINE Words f32_bits(Floats value) {
  return select(is_nan(value), words(kQuietNan), bits_of(value));
}

GS_INLINE Words bf16_bits(Floats value) {
  const Words bits = bits_of(value);
  const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return select(is_nan(value), words(kQuietNan >> 16), rounded);
}

GS_INLINE Words f16_bits(Floats value) {
  const Words bits = bits_of(value);
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & kMagnitudeBits;
  // Below 2^-14 the addition itself rounds to multiples of 2^-24.
  const Words small = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
  const Words normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  Words result = select((Ints)magnitude < (Ints)words(0x38800000u), small, normal);
  result = select((Ints)magnitude >= (Ints)words(0x477FF000u), words(0x7C00u), result);
  return select(is_nan(value), words(0x7E00u), result | sign);
}

GS_INLINE Floats from_f16(Words half) {
  const Words sign = (half & 0x8000u) << 16;
  const Words magnitude = half & 0x7FFFu;
  const Words normal = (magnitude << 13) + 0x38000000u;
  const Words special = (magnitude << 13) + 0x70000000u;
  const Words small = bits_of(to_floats(magnitude) * 0x1p-24f);
  Words result = select((Ints)magnitude < (Ints)words(0x400u), small, normal);
  result = select((Ints)magnitude >= (Ints)words(0x7C00u), special, result);
  return float_from_bits(result | sign);
}

template <Dtype kDtype>
GS_INLINE Words stored_bits(Floats value) {
  if constexpr (kDtype == Dtype::F16) {
    return f16_bits(value);
  } else if constexpr (kDtype == Dtype::BF16) {
    return bf16_bits(value);
  } else {
    return f32_bits(value);
  }
}

template <Dtype kDtype>
GS_INLINE Floats stored_value(Words bits) {
  if constexpr (kDtype == Dtype::F16) {
    return from_f16(bits);
  } else if constexpr (kDtype == Dtype::BF16) {
    return float_from_bits(bits << 16);
  } else {
    return float_from_bits(bits);
  }
}

template <Dtype kDtype>
GS_INLINE Floats load_stored(const uint8_t* from) {
  if constexpr (kDtype == Dtype::F32) {
    return load<Floats>(from);
  } else {
    return stored_value<kDtype>(widen_halves(from));
  }
}

template <Dtype kDtype>
GS_INLINE void store_stored(uint8_t* to, Words bits) {
  if constexpr (kDtype == Dtype::F32) {
    store(to, bits);
  } else {
    narrow_halves(to, bits);
  }
}

template <Dtype kDtype>
constexpr int kStoredBytes = kDtype == Dtype::F32 ? 4 : 2;

GS_INLINE int64_t stored_bytes(Dtype dtype) {
  return dtype == Dtype::F32 ? 4 : 2;
}

GS_INLINE Floats load_stored(Dtype dtype, const uint8_t* from) {
  switch (dtype) {
    case Dtype::F16:
      return load_stored<Dtype::F16>(from);
    case Dtype::BF16:
      return load_stored<Dtype::BF16>(from);
    default:
      return load_stored<Dtype::F32>(from);
  }
}

// The nearest stored value, for scalar use.
template <Dtype kDtype>
GS_INLINE float rounded_to(float value) {
  return stored_value<kDtype>(stored_bits<kDtype>(splat(value)))[0];
}

// E4M3 without infinities: round to nearest even, 448 at most, as MLX's to_fp8.
GS_INLINE Words e4m3_bits(Floats value) {
  const Words bits = bits_of(value);
  const Words sign = (bits >> 24) & 0x80u;
  const Words magnitude = bits & kMagnitudeBits;
  // Below 2^-6 the addition itself rounds to multiples of 2^-9.
  const Words small = bits_of(float_from_bits(magnitude) + 16384.0f) - 0x46800000u;
  const Words normal = (magnitude - 0x3C000000u + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20;
  Words result = select((Ints)magnitude < (Ints)words(0x3C800000u), small, normal);
  result = select((Ints)magnitude >= (Ints)words(0x43E00000u), words(0x7Eu), result);
  return result | sign;
}

GS_INLINE Floats from_e4m3(Words code) {
  const Words sign = (code & 0x80u) << 24;
  const Words magnitude = code & 0x7Fu;
  const Words normal = (magnitude << 20) + 0x3C000000u;
  const Words small = bits_of(to_floats(magnitude) * 0x1p-9f);
  Words result = select((Ints)magnitude < (Ints)words(8), small, normal);
  result = select((Ints)magnitude == (Ints)words(0x7Fu), words(0x7FC00000u), result);
  return float_from_bits(result | sign);
}

// E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; ties to the even mantissa, as MLX's Metal kernel.
GS_INLINE Words e2m1_bits(Floats value) {
  const Floats m = absolute(value);
  const Ints above = (m > splat(0.25f)) + (m >= splat(0.75f)) + (m > splat(1.25f)) +
                     (m >= splat(1.75f)) + (m > splat(2.5f)) + (m >= splat(3.5f)) +
                     (m > splat(5.0f));
  return (Words)(-above) | ((bits_of(value) >> 28) & 8u);
}

GS_INLINE Floats from_e2m1(Words code) {
  const Words magnitude = code & 7u;
  const Words normal = (magnitude << 22) + 0x3F000000u;
  const Words small = select((Ints)magnitude == (Ints)words(1), words(0x3F000000u), words(0));
  const Words result = select((Ints)magnitude < (Ints)words(2), small, normal);
  return float_from_bits(result | ((code & 8u) << 28));
}

GS_INLINE float from_e8m0(uint8_t code) {
  const uint32_t bits = code == 0 ? 0x400000u : code == 255 ? 0x7FC00000u : (uint32_t)code << 23;
  return load<float>(&bits);
}

}  // namespace gemma_surgery::cpu::GS_ISA
