// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One row of float32 values to a dense or affine encoding. Codes of affine groups are the
// nearest ones for the scale and bias as stored, so that no rounding of theirs is unseen.

#pragma once

#include "cpu/affine_fit.h"
#include "cpu/codes.h"
#include "cpu/refine.h"

namespace gemma_surgery::cpu::GS_ISA {

// -1 when every value is finite.
static int64_t first_non_finite(const float* values, int64_t count) {
  Words worst = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    worst = larger_magnitude(worst, load<Words>(values + i) & kMagnitudeBits);
  }
  uint32_t largest = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    largest = worst[lane] > largest ? worst[lane] : largest;
  }
  if (largest < kInfinityBits && i == count) {
    return -1;
  }
  for (int64_t k = largest < kInfinityBits ? i : 0; k < count; ++k) {
    if ((load<uint32_t>(values + k) & kMagnitudeBits) >= kInfinityBits) {
      return k;
    }
  }
  return -1;
}

// Writes `count` values; returns the first finite one that became infinite, or -1.
template <Dtype kDtype>
static int64_t encode_dense(const float* values, int64_t count, uint8_t* out) {
  int64_t overflow = -1;
  for (int64_t i = 0; i < count; i += kWidth) {
    Floats value = {};
    const int64_t rest = count - i;
    if (rest >= kWidth) {
      value = load<Floats>(values + i);
    } else {
      __builtin_memcpy(&value, values + i, (size_t)rest * sizeof(float));
    }
    const Words bits = stored_bits<kDtype>(value);
    if constexpr (kDtype != Dtype::F32) {
      const Words magnitude = bits_of(absolute(stored_value<kDtype>(bits)));
      const Ints lost = ((Ints)magnitude == (Ints)words(kInfinityBits)) &
                        ((Ints)(bits_of(value) & kMagnitudeBits) < (Ints)words(kInfinityBits));
      if (highest_lane(to_floats((Words)-lost)) > 0.0f && overflow < 0) {
        for (int lane = kWidth - 1; lane >= 0; --lane) {
          overflow = lost[lane] ? i + lane : overflow;
        }
      }
    }
    if (rest >= kWidth) {
      store_stored<kDtype>(out + i * kStoredBytes<kDtype>, bits);
    } else {
      uint8_t tail[4 * kWidth];
      store_stored<kDtype>(tail, bits);
      __builtin_memcpy(out + i * kStoredBytes<kDtype>, tail, (size_t)rest * kStoredBytes<kDtype>);
    }
  }
  return overflow;
}

// Nearest codes for `scales` and `biases` as stored, one byte each. Where the fit was not
// rounded, a true division gives MLX's own codes bit for bit.
template <bool kDivide>
static void nearest_codes(
    const float* values,
    int64_t groups,
    int group,
    float last_code,
    const Scratch& scratch) {
  for (int64_t g = 0; g < groups; ++g) {
    const Floats bias = splat(scratch.biases[g]);
    const Floats inverse = splat(scratch.inverses[g]);
    const Floats scale = splat(scratch.scales[g]);
    const bool divide = kDivide && scratch.scales[g] != 0.0f;
    for (int i = 0; i < group; i += kWidth) {
      const Floats value = load<Floats>(values + g * group + i);
      const Floats steps = divide ? (value - bias) / scale : (value - bias) * inverse;
      const Floats code = minimum(maximum(steps, splat(0.0f)), splat(last_code));
      narrow_bytes(scratch.codes + g * group + i, code_bits(code));
    }
  }
}

template <Dtype kDtype>
static EncodeResult encode_affine(
    const Encoding& encoding,
    const float* values,
    int64_t cols,
    const uint8_t* padded,
    bool refine,
    const Scratch& scratch,
    const EncodedRow& out) {
  const int group = encoding.group_size;
  const int bits = encoding.bits;
  const bool symmetric = encoding.mode == Mode::Symmetric;
  const int64_t groups = cols / group;
  const int64_t non_finite = first_non_finite(values, cols);
  if (non_finite >= 0) {
    return {non_finite, Fault::NonFinite};
  }
  if (group == 32) {
    group_ranges<32>(values, groups, scratch.minima, scratch.maxima);
  } else if (group == 64) {
    group_ranges<64>(values, groups, scratch.minima, scratch.maxima);
  } else {
    group_ranges<128>(values, groups, scratch.minima, scratch.maxima);
  }
  for (int64_t g = groups; g < groups + kLanes; ++g) {
    scratch.minima[g] = 0.0f;
    scratch.maxima[g] = 0.0f;
  }
  bool in_range = symmetric ? fit_symmetric<kDtype>(scratch, groups, bits)
                            : fit_affine<kDtype>(scratch, groups, bits);
  if (!in_range) {
    for (int64_t g = 0; g < groups; ++g) {
      const bool fits = __builtin_isfinite(scratch.scales[g]) &&
                        __builtin_isfinite(rounded_to<kDtype>(scratch.biases[g]));
      if (!fits) {
        return {g * group, Fault::OutOfRange};
      }
    }
  }
  if (padded && !symmetric) {
    for (int64_t g = 0; g < groups; ++g) {
      if (!padded[g]) {
        continue;
      }
      Fit fit = {};
      if (!fit_exact_zero<kDtype>(
              values + g * group, group, bits, scratch.minima[g], scratch.maxima[g], &fit)) {
        return {g * group, Fault::OutOfRange};
      }
      scratch.scales[g] = fit.scale;
      scratch.biases[g] = fit.bias;
      scratch.inverses[g] = inverse_of(fit.scale);
    }
  }
  if (refine) {
    refine_groups<kDtype>(encoding, values, groups, padded, scratch);
  }
  constexpr bool kDivide = kDtype == Dtype::F32;
  nearest_codes<kDivide>(values, groups, group, (float)((1 << bits) - 1), scratch);
  pack_codes(bits, scratch.codes, cols, out.weight);
  encode_dense<kDtype>(scratch.scales, groups, out.scales);
  encode_dense<kDtype>(scratch.biases, groups, out.biases);
  return {-1, Fault::None};
}

}  // namespace gemma_surgery::cpu::GS_ISA
