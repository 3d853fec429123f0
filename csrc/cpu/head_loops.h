// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What is done to a block of logits while it is still in the first-level cache.

#pragma once

#include "cpu/float_math.h"
#include "cpu/kernels.h"

namespace gemma_surgery::cpu::GS_ISA {

// tanh within 5e-7 of its value: a series near zero, where the quotient loses digits.
GS_INLINE Floats tanh_of(Floats u) {
  const Floats square = u * u;
  Floats series = broadcast(-1382.0f / 155925.0f);
  series = multiply_add(series, square, broadcast(62.0f / 2835.0f));
  series = multiply_add(series, square, broadcast(-17.0f / 315.0f));
  series = multiply_add(series, square, broadcast(2.0f / 15.0f));
  series = multiply_add(series, square, broadcast(-1.0f / 3.0f));
  series = multiply_add(series * square, u, u);
  const Floats power = exp_of(u + u);
  const Floats quotient = broadcast(1.0f) - broadcast(2.0f) / (power + broadcast(1.0f));
  return select(square < broadcast(0.0625f), series, quotient);
}

// values = cap * tanh(values / cap); writes up to a whole vector.
static void softcap(float* values, int64_t count, float cap) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const Floats u = load<Floats>(values + i) / broadcast(cap);
    store(values + i, tanh_of(u) * broadcast(cap));
  }
}

// The sum of e^(value - largest), and the largest value; overwrites what fills up a vector.
static float exp_sum(float* values, int64_t count, float* largest) {
  for (int64_t i = count; i % kLanes != 0; ++i) {
    values[i] = -__builtin_inff();
  }
  Floats top = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < count; i += kWidth) {
    top = maximum(load<Floats>(values + i), top);
  }
  *largest = highest_lane(top);
  if (*largest == -__builtin_inff()) {
    // All are minus infinity, or not numbers, which the maximum passes over.
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      sum += values[i] != values[i] ? values[i] : 0.0f;
    }
    return sum;
  }
  // Sixteen lanes on every instruction set: the order of the sum is part of the result.
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    float* lane = lanes + i % kLanes;
    store(lane, load<Floats>(lane) + exp_of(load<Floats>(values + i) - broadcast(*largest)));
  }
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sum += lanes[lane];
  }
  return sum;
}

}  // namespace gemma_surgery::cpu::GS_ISA
