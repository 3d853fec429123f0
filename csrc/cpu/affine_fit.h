// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Scale and bias of affine groups, as they will be stored.
//   affine     MLX's formula in float32, then rounded to the stored dtype
//   symmetric  bias = -2^(bits-1) * scale; every value within half a step of its code
//   exact zero the best pair with bias = -k * scale and k * scale exact in the stored
//              dtype, so that zero decodes to 0.0 in float32 and in the stored dtype

#pragma once

#include "cpu/floats.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace gemma_surgery::cpu::GS_ISA {

// MLX's smallest scale; keeps the formulas defined for constant groups.
constexpr float kSmallestScale = 1e-7f;

GS_INLINE Floats code_of(Floats value, Floats bias, Floats inverse, float last_code) {
  return minimum(maximum((value - bias) * inverse, splat(0.0f)), splat(last_code));
}

// Nearest integer of a code in [0, 255], in the low byte of each lane.
GS_INLINE Words code_bits(Floats code) {
  return bits_of(code + 8388608.0f);
}

struct Fit {
  float scale;
  float bias;
};

// 1 / scale, and 0 where a group is constant and its scale underflowed.
GS_INLINE Floats inverse_of(Floats scale) {
  return select(scale == splat(0.0f), splat(0.0f), 1.0f / scale);
}

GS_INLINE float inverse_of(float scale) {
  return scale == 0.0f ? 0.0f : 1.0f / scale;
}

// Squared error of one group coded to the nearest codes; 16 lanes, then a fixed tree.
[[maybe_unused]] static float group_error(const float* values, int group, Fit fit, int last_code) {
  const Floats scale = splat(fit.scale);
  const Floats bias = splat(fit.bias);
  const Floats inverse = splat(inverse_of(fit.scale));
  Floats sums[kLanes / kWidth] = {};
  for (int i = 0; i < group; i += kLanes) {
    for (int part = 0; part < kLanes / kWidth; ++part) {
      const Floats value = load<Floats>(values + i + part * kWidth);
      const Floats code = code_of(value, bias, inverse, (float)last_code);
      const Floats rounded = (code + 8388608.0f) - 8388608.0f;
      const Floats error = value - (rounded * scale + bias);
      sums[part] += error * error;
    }
  }
  return sum_lanes(sums);
}

// Least and greatest value of each group; false when one is infinite or not a number.
template <int kGroup>
static bool group_ranges(const float* values, int64_t groups, float* minima, float* maxima) {
  Words worst = {};
  for (int64_t g = 0; g < groups; ++g) {
    Floats low = load<Floats>(values + g * kGroup);
    Floats high = low;
    worst = larger_magnitude(worst, bits_of(absolute(low)));
    for (int i = kWidth; i < kGroup; i += kWidth) {
      const Floats value = load<Floats>(values + g * kGroup + i);
      low = minimum(low, value);
      high = maximum(high, value);
      worst = larger_magnitude(worst, bits_of(absolute(value)));
    }
    lowest_highest(low, high, minima + g, maxima + g);
  }
  return highest_bits(worst) < kInfinityBits;
}

// Returns true when every scale and bias is finite in the stored dtype.
template <Dtype kDtype>
static bool fit_affine(const Scratch& scratch, int64_t groups, int bits) {
  const float last_code = (float)((1 << bits) - 1);
  Words worst = {};
  for (int64_t g = 0; g < groups; g += kWidth) {
    const Floats low = load<Floats>(scratch.minima + g);
    const Floats high = load<Floats>(scratch.maxima + g);
    const Ints low_is_larger = absolute(low) > absolute(high);
    const Floats step = maximum((high - low) / last_code, splat(kSmallestScale));
    const Floats signed_step = select(low_is_larger, step, -step);
    const Floats edge = select(low_is_larger, low, high);
    const Floats steps = round_even(edge / signed_step);
    const Ints has_steps = steps != splat(0.0f);
    const Floats scale = select(has_steps, edge / steps, signed_step);
    const Floats bias = select(has_steps, edge, splat(0.0f));
    const Floats stored_scale = stored_value<kDtype>(stored_bits<kDtype>(scale));
    const Floats stored_bias = stored_value<kDtype>(stored_bits<kDtype>(bias));
    worst = larger_magnitude(worst, bits_of(absolute(stored_scale)));
    worst = larger_magnitude(worst, bits_of(absolute(stored_bias)));
    store(scratch.scales + g, stored_scale);
    store(scratch.biases + g, stored_bias);
    store(scratch.inverses + g, inverse_of(stored_scale));
  }
  return highest_lane(float_from_bits(worst)) < __builtin_inff();
}

template <Dtype kDtype>
static bool fit_symmetric(const Scratch& scratch, int64_t groups, int bits) {
  const float middle = (float)(1 << (bits - 1));
  Words worst = {};
  for (int64_t g = 0; g < groups; g += kWidth) {
    const Floats low = load<Floats>(scratch.minima + g);
    const Floats high = load<Floats>(scratch.maxima + g);
    const Ints low_is_larger = absolute(low) > absolute(high);
    // Code 0 reaches -middle steps; the other end reaches middle - 1, and half a step more.
    const Floats edge = select(low_is_larger, absolute(low), absolute(high));
    const Floats other = select(low_is_larger, high, -low);
    Floats step = maximum(edge / middle, other / (middle - 0.5f));
    step = maximum(step, splat(kSmallestScale));
    const Floats scale = select(low_is_larger, step, -step);
    const Floats stored_scale = stored_value<kDtype>(stored_bits<kDtype>(scale));
    const Floats bias = -middle * stored_scale;
    worst =
        larger_magnitude(worst, bits_of(absolute(stored_value<kDtype>(stored_bits<kDtype>(bias)))));
    store(scratch.scales + g, stored_scale);
    store(scratch.biases + g, bias);
    store(scratch.inverses + g, inverse_of(stored_scale));
  }
  return highest_lane(float_from_bits(worst)) < __builtin_inff();
}

template <Dtype kDtype>
constexpr int kMantissaBits = kDtype == Dtype::F32   ? 24
                              : kDtype == Dtype::F16 ? 11
                                                     : 8;

// Below float16's normal range steps are multiples of this one.
template <Dtype kDtype>
constexpr float kTiniestStep = kDtype == Dtype::F16 ? 0x1p-24f : 0.0f;

GS_INLINE float truncated(float value, int mantissa_bits) {
  const uint32_t bits = load<uint32_t>(&value);
  const uint32_t kept = bits & ~((1u << (24 - mantissa_bits)) - 1u);
  return load<float>(&kept);
}

GS_INLINE float raised(float value, int mantissa_bits) {
  const uint32_t mask = (1u << (24 - mantissa_bits)) - 1u;
  const uint32_t bits = (load<uint32_t>(&value) + mask) & ~mask;
  return load<float>(&bits);
}

// True when the zero code k times `step` is a stored value, and `step` is one.
template <Dtype kDtype>
static bool zero_is_exact(float step, int k) {
  const float shift = step * (float)k;
  return step > 0.0f && step < __builtin_inff() && shift < __builtin_inff() &&
         rounded_to<kDtype>(step) == step && rounded_to<kDtype>(shift) == shift;
}

// The pair with an exact zero and the least squared error; false when none can be stored.
template <Dtype kDtype>
static bool
fit_exact_zero(const float* values, int group, int bits, float low, float high, Fit* best) {
  const int last_code = (1 << bits) - 1;
  low = low < 0.0f ? low : 0.0f;
  high = high > 0.0f ? high : 0.0f;
  if (low == 0.0f && high == 0.0f) {
    *best = {rounded_to<kDtype>(kSmallestScale), 0.0f};
    return true;
  }
  float least_step = __builtin_inff();
  float least_error = __builtin_inff();
  bool found = false;
  // The first pass finds the finest step, the second weighs the errors of those near it.
  for (int pass = 0; pass < 2; ++pass) {
    for (int k = 0; k <= last_code; ++k) {
      const int odd_bits =
          k == 0 ? 1 : 32 - __builtin_clz((unsigned)k >> __builtin_ctz((unsigned)k));
      const int mantissa_bits =
          odd_bits == 1 ? kMantissaBits<kDtype> : kMantissaBits<kDtype> - odd_bits;
      if (mantissa_bits < 1) {
        continue;
      }
      const float below = -low / ((float)k + 0.5f);
      const float above = high / ((float)(last_code - k) + 0.5f);
      const float step = below > above ? below : above;
      if (pass == 0) {
        least_step = step < least_step ? step : least_step;
        continue;
      }
      if (step > 1.25f * least_step) {
        continue;
      }
      float choices[3] = {
          truncated(step, mantissa_bits), raised(step, mantissa_bits), kTiniestStep<kDtype>};
      for (float choice : choices) {
        if (!zero_is_exact<kDtype>(choice, k)) {
          continue;
        }
        const Fit fit = {choice, k == 0 ? 0.0f : -choice * (float)k};
        const float error = group_error(values, group, fit, last_code);
        if (error < least_error || !found) {
          least_error = error;
          *best = fit;
          found = true;
        }
      }
    }
  }
  return found;
}

}  // namespace gemma_surgery::cpu::GS_ISA
