// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One row of float32 values to mxfp4, mxfp8 or nvfp4. An E8M0 scale is the power of two
// just below or just above max|w| / largest code, whichever has the smaller squared error
// (MLX takes the nearest one); an E4M3 scale is that ratio rounded, as in MLX.

#pragma once

#include "cpu/encode.h"

namespace gemma_surgery::cpu::GS_ISA {

template <bool kFp8>
GS_INLINE Words mx_code(Floats value) {
  return kFp8 ? e4m3_bits(value) : e2m1_bits(value);
}

template <bool kFp8>
GS_INLINE Floats mx_value(Words code) {
  return kFp8 ? from_e4m3(code) : from_e2m1(code);
}

template <bool kFp8>
static float mx_error(const float* values, int group, float scale) {
  const Floats factor = splat(scale);
  Floats sums[kLanes / kWidth] = {};
  for (int i = 0; i < group; i += kLanes) {
    for (int part = 0; part < kLanes / kWidth; ++part) {
      const Floats value = load<Floats>(values + i + part * kWidth);
      const Floats error = value - mx_value<kFp8>(mx_code<kFp8>(value / factor)) * factor;
      sums[part] += error * error;
    }
  }
  return sum_lanes(sums);
}

// The better of the two powers of two around max|w| / largest code.
template <bool kFp8>
static uint8_t fit_e8m0(const float* values, int group, float magnitude) {
  const float ratio = magnitude / (kFp8 ? 448.0f : 6.0f);
  if (ratio == 0.0f) {
    return 127;
  }
  const uint32_t bits = load<uint32_t>(&ratio);
  const uint32_t below = bits >> 23;
  const uint32_t above = below + ((bits & 0x7FFFFFu) != 0 ? 1u : 0u);
  if (above == below || above > 254u) {
    return (uint8_t)below;
  }
  const float error_below = mx_error<kFp8>(values, group, from_e8m0((uint8_t)below));
  const float error_above = mx_error<kFp8>(values, group, from_e8m0((uint8_t)above));
  return (uint8_t)(error_below < error_above ? below : above);
}

template <bool kFp8>
static EncodeResult encode_mx(
    const Encoding& encoding,
    const float* values,
    int64_t cols,
    const Scratch& scratch,
    const EncodedRow& out) {
  const int group = encoding.group_size;
  const int64_t non_finite = first_non_finite(values, cols);
  if (non_finite >= 0) {
    return {non_finite, Fault::NonFinite};
  }
  for (int64_t g = 0; g < cols / group; ++g) {
    const float* from = values + g * group;
    Floats largest = {};
    for (int i = 0; i < group; i += kWidth) {
      largest = maximum(largest, absolute(load<Floats>(from + i)));
    }
    const float magnitude = highest_lane(largest);
    float scale = 0.0f;
    if (encoding.mode == Mode::Nvfp4) {
      if (magnitude > 448.0f * 6.0f) {
        return {g * group, Fault::OutOfRange};
      }
      out.scales[g] = (uint8_t)e4m3_bits(splat(magnitude / 6.0f))[0];
      scale = from_e4m3(words(out.scales[g]))[0];
    } else {
      out.scales[g] = fit_e8m0<kFp8>(from, group, magnitude);
      scale = from_e8m0(out.scales[g]);
    }
    const Floats factor = splat(scale == 0.0f ? 1.0f : scale);
    const Floats keep = splat(scale == 0.0f ? 0.0f : 1.0f);
    for (int i = 0; i < group; i += kWidth) {
      const Floats value = load<Floats>(from + i) * keep / factor;
      narrow_bytes(scratch.codes + g * group + i, mx_code<kFp8>(value));
    }
  }
  pack_codes(encoding.bits, scratch.codes, cols, out.weight);
  return {-1, Fault::None};
}

}  // namespace gemma_surgery::cpu::GS_ISA
