// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Scale and bias of one affine group by one simdgroup, as cpu/affine_fit.h finds them, operation
// by operation: value i * 32 + lane of the group is values[i] of a lane. Stored types are O.

#pragma once

#pragma METAL fp contract(off)

// MLX's smallest scale; keeps the formulas defined for constant groups.
constant constexpr float kSmallestScale = 1e-7f;

// Values of one lane in the largest group.
constant constexpr int kMostPerLane = 4;

struct Fit {
  float scale;
  float bias;
};

template <typename T>
struct Stored;

template <>
struct Stored<float> {
  static constexpr int mantissa_bits() {
    return 24;
  }
  static constexpr float tiniest_step() {
    return 0.0f;
  }
};

// Below float16's normal range steps are multiples of 2^-24.
template <>
struct Stored<half> {
  static constexpr int mantissa_bits() {
    return 11;
  }
  static constexpr float tiniest_step() {
    return 5.9604644775390625e-8f;
  }
};

template <>
struct Stored<bfloat> {
  static constexpr int mantissa_bits() {
    return 8;
  }
  static constexpr float tiniest_step() {
    return 0.0f;
  }
};

inline float rounded_to_stored(float value) {
  return float(O(value));
}

// 1 / scale, and 0 where a group is constant and its scale underflowed.
inline float inverse_of(float scale) {
  return scale == 0.0f ? 0.0f : 1.0f / scale;
}

inline Fit fit_affine(float low, float high, float last_code) {
  const bool low_is_larger = fabs(low) > fabs(high);
  const float step = max((high - low) / last_code, kSmallestScale);
  const float signed_step = low_is_larger ? step : -step;
  const float edge = low_is_larger ? low : high;
  const float steps = rint(edge / signed_step);
  const bool has_steps = steps != 0.0f;
  Fit fit;
  fit.scale = rounded_to_stored(has_steps ? edge / steps : signed_step);
  fit.bias = rounded_to_stored(has_steps ? edge : 0.0f);
  return fit;
}

// Squared error of the group coded to the nearest codes: 16 sums by column, then a tree, the
// order of the CPU. The same in every lane.
inline float group_error(const thread float* values, int per_lane, Fit fit, float last_code) {
  const float inverse = inverse_of(fit.scale);
  float sum = 0.0f;
  for (int i = 0; i < per_lane; ++i) {
    const float code = min(max((values[i] - fit.bias) * inverse, 0.0f), last_code);
    const float product = rint(code) * fit.scale;
    const float error = values[i] - (product + fit.bias);
    const float square = error * error;
    sum += square;
    sum += simd_shuffle_down(square, 16);
  }
  sum += simd_shuffle_down(sum, 8);
  sum += simd_shuffle_down(sum, 4);
  sum += simd_shuffle_down(sum, 2);
  sum += simd_shuffle_down(sum, 1);
  return simd_broadcast(sum, 0);
}

inline float truncated(float value, int mantissa_bits) {
  return as_type<float>(as_type<uint>(value) & ~((1u << (24 - mantissa_bits)) - 1u));
}

inline float raised(float value, int mantissa_bits) {
  const uint mask = (1u << (24 - mantissa_bits)) - 1u;
  return as_type<float>((as_type<uint>(value) + mask) & ~mask);
}

// True when the zero code k times `step` is a stored value, and `step` is one.
inline bool zero_is_exact(float step, int k) {
  const float shift = step * float(k);
  return step > 0.0f && step < INFINITY && shift < INFINITY && rounded_to_stored(step) == step &&
         rounded_to_stored(shift) == shift;
}

// Mantissa bits that a step may have so that k steps are exact; below 1: none.
inline int exact_mantissa_bits(int k) {
  const int odd_bits = k == 0 ? 1 : 32 - int(clz(uint(k) >> ctz(uint(k))));
  return odd_bits == 1 ? Stored<O>::mantissa_bits() : Stored<O>::mantissa_bits() - odd_bits;
}

inline float step_for(float low, float high, int k, int last_code) {
  const float below = -low / (float(k) + 0.5f);
  const float above = high / (float(last_code - k) + 0.5f);
  return below > above ? below : above;
}

// The pair with bias = -k * scale, exact in O, and the least squared error: zero then decodes
// to zero. NaN when no such pair can be stored.
inline Fit fit_exact_zero(
    const thread float* values,
    int per_lane,
    float low,
    float high,
    int last_code,
    uint lane) {
  Fit best;
  best.scale = rounded_to_stored(kSmallestScale);
  best.bias = 0.0f;
  low = low < 0.0f ? low : 0.0f;
  high = high > 0.0f ? high : 0.0f;
  if (low == 0.0f && high == 0.0f) {
    return best;
  }
  float least_step = INFINITY;
  for (int k = int(lane); k <= last_code; k += 32) {
    if (exact_mantissa_bits(k) >= 1) {
      least_step = min(least_step, step_for(low, high, k, last_code));
    }
  }
  least_step = simd_min(least_step);
  best.scale = NAN;
  best.bias = NAN;
  float least_error = INFINITY;
  bool found = false;
  for (int k = 0; k <= last_code; ++k) {
    const int mantissa_bits = exact_mantissa_bits(k);
    const float step = step_for(low, high, k, last_code);
    if (mantissa_bits < 1 || step > 1.25f * least_step) {
      continue;
    }
    for (int choice = 0; choice < 3; ++choice) {
      const float candidate = choice == 0   ? truncated(step, mantissa_bits)
                              : choice == 1 ? raised(step, mantissa_bits)
                                            : Stored<O>::tiniest_step();
      if (!zero_is_exact(candidate, k)) {
        continue;
      }
      Fit fit;
      fit.scale = candidate;
      fit.bias = k == 0 ? 0.0f : -candidate * float(k);
      const float error = group_error(values, per_lane, fit, float(last_code));
      if (error < least_error || !found) {
        least_error = error;
        best = fit;
        found = true;
      }
    }
  }
  return best;
}
