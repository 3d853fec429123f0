// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Rows of floating point numbers as integers of 8, 16 or 24 bits with one unit per group,
// cut into signed bytes for integer dot products.

#pragma once

#include "cpu/floats.h"
#include "cpu/product_kernels.h"

namespace gemma_surgery::cpu::GS_ISA {

// Largest magnitude of the integers: one bit below what the bytes hold, so that the
// leading byte never overflows when the lower ones round up.
constexpr int kIntegerBits24 = 22;
constexpr int kIntegerBits16 = 14;
constexpr float kLargestInt8 = 127.0f;

// Below this the unit of an 8-bit group would be subnormal: the group counts as zero.
constexpr float kSmallestInt8 = 0x1p-100f;

struct Units {
  float unit;
  float inverse;
};

// A power of two, so that scaling by it is exact; NaN where the group is not finite.
GS_INLINE Units power_of_two_unit(uint32_t largest_bits, int integer_bits) {
  if (largest_bits >= kInfinityBits) {
    return {__builtin_nanf(""), 0.0f};
  }
  uint32_t exponent = largest_bits >> 23;
  exponent = exponent < (uint32_t)integer_bits ? (uint32_t)integer_bits : exponent;
  const uint32_t unit = (exponent + 1 - (uint32_t)integer_bits) << 23;
  const uint32_t inverse = (253 + (uint32_t)integer_bits - exponent) << 23;
  return {load<float>(&unit), load<float>(&inverse)};
}

GS_INLINE Units int8_unit(uint32_t largest_bits) {
  if (largest_bits >= kInfinityBits) {
    return {__builtin_nanf(""), 0.0f};
  }
  const float largest = load<float>(&largest_bits);
  if (largest < kSmallestInt8) {
    return {0.0f, 0.0f};
  }
  return {largest / kLargestInt8, kLargestInt8 / largest};
}

// Rounds |value| <= 2^22 to the nearest integer, ties to even.
GS_INLINE Ints nearest_int(Floats value) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (Ints)bits_of(value + kMagic) - 0x4B400000;
}

template <Dtype kDtype, int kPlanes>
static void split_row(
    const uint8_t* x,
    int64_t cols,
    int64_t group_size,
    int8_t* digits,
    float* units,
    float* sums) {
  constexpr int64_t kBytes = kStoredBytes<kDtype>;
  for (int64_t group = 0; group < cols / group_size; ++group) {
    const int64_t start = group * group_size;
    Words largest = words(0);
    for (int64_t i = start; i < start + group_size; i += kWidth) {
      const Words magnitude = bits_of(load_stored<kDtype>(x + i * kBytes)) & kMagnitudeBits;
      largest = select((Ints)magnitude > (Ints)largest, magnitude, largest);
    }
    const uint32_t bits = highest_bits(largest);
    const Units unit =
        kPlanes == 1 ? int8_unit(bits)
                     : power_of_two_unit(bits, kPlanes == 3 ? kIntegerBits24 : kIntegerBits16);
    Ints total = Ints{};
    for (int64_t i = start; i < start + group_size; i += kWidth) {
      Ints value = Ints{};
      if (unit.inverse != 0.0f) {
        value = nearest_int(load_stored<kDtype>(x + i * kBytes) * unit.inverse);
      }
      total += value;
      for (int plane = kPlanes - 1; plane >= 0; --plane) {
        narrow_bytes((uint8_t*)digits + plane * cols + i, (Words)value);
        value = (value + 128) >> 8;
      }
    }
    int32_t sum = 0;
    for (int lane = 0; lane < kWidth; ++lane) {
      sum += total[lane];
    }
    units[group] = unit.unit;
    sums[group] = (float)sum * unit.unit;
  }
}

template <Dtype kDtype>
static void split_stored(
    const uint8_t* x,
    int64_t cols,
    int64_t group_size,
    int planes,
    int8_t* digits,
    float* units,
    float* sums) {
  switch (planes) {
    case 1:
      return split_row<kDtype, 1>(x, cols, group_size, digits, units, sums);
    case 2:
      return split_row<kDtype, 2>(x, cols, group_size, digits, units, sums);
    default:
      return split_row<kDtype, 3>(x, cols, group_size, digits, units, sums);
  }
}

static void split(
    const uint8_t* x,
    Dtype dtype,
    int64_t cols,
    int64_t group_size,
    int planes,
    int8_t* digits,
    float* units,
    float* sums) {
  switch (dtype) {
    case Dtype::F16:
      return split_stored<Dtype::F16>(x, cols, group_size, planes, digits, units, sums);
    case Dtype::BF16:
      return split_stored<Dtype::BF16>(x, cols, group_size, planes, digits, units, sums);
    default:
      return split_stored<Dtype::F32>(x, cols, group_size, planes, digits, units, sums);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
