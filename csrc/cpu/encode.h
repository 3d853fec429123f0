// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One row of float32 values to a dense or affine encoding. Codes of affine groups are the
// nearest ones for the scale and bias as stored, so that no rounding of theirs is unseen.

#pragma once

#include "cpu/affine_fit.h"
#include "cpu/codes.h"
#include "cpu/nibbles.h"
#include "cpu/refine.h"

namespace gemma_surgery::cpu::GS_ISA {

// -1 when every value is finite.
static int64_t first_non_finite(const float* values, int64_t count) {
  Words worst = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    worst = larger_magnitude(worst, load<Words>(values + i) & kMagnitudeBits);
  }
  const uint32_t largest = highest_bits(worst);
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

// Nearest codes for `scales` and `biases` as stored, packed. Where the fit was not rounded,
// a true division gives MLX's own codes bit for bit.
template <bool kDivide>
static void pack_nearest(
    const float* values,
    int64_t groups,
    const Encoding& encoding,
    const Scratch& scratch,
    uint8_t* out) {
  const int group = encoding.group_size;
  const float last_code = (float)((1 << encoding.bits) - 1);
  for (int64_t g = 0; g < groups; ++g) {
    const Floats bias = splat(scratch.biases[g]);
    const Floats inverse = splat(scratch.inverses[g]);
    const Floats scale = splat(scratch.scales[g]);
    const bool divide = kDivide && scratch.scales[g] != 0.0f;
    const float* from = values + g * group;
    const auto steps_at = [&](int i) {
      const Floats above = load<Floats>(from + i) - bias;
      return minimum(divide ? above / scale : above * inverse, splat(last_code));
    };
    if constexpr (kNibbles) {
      if (encoding.bits == 4 && group % kPackedNibbles == 0) {
        for (int i = 0; i < group; i += kPackedNibbles) {
          const auto steps = [&](int part) { return steps_at(i + part * kWidth); };
          pack_nibbles(steps, out + (g * group + i) / 2);
        }
        continue;
      }
    }
    for (int i = 0; i < group; i += kWidth) {
      const Floats code = maximum(steps_at(i), splat(0.0f));
      narrow_bytes(scratch.codes + i, code_bits(code));
    }
    pack_codes(encoding.bits, scratch.codes, group, out + g * group * encoding.bits / 8);
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
  const auto ranges = group == 32   ? group_ranges<32>
                      : group == 64 ? group_ranges<64>
                                    : group_ranges<128>;
  if (!ranges(values, groups, scratch.minima, scratch.maxima)) {
    return {first_non_finite(values, cols), Fault::NonFinite};
  }
  const int64_t filled = (groups + kSlack - 1) / kSlack * kSlack;
  for (int64_t g = groups; g < filled; ++g) {
    scratch.minima[g] = 0.0f;
    scratch.maxima[g] = 0.0f;
  }
  const bool in_range = symmetric ? fit_symmetric<kDtype>(scratch, filled, bits)
                                  : fit_affine<kDtype>(scratch, filled, bits);
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
  pack_nearest<kDivide>(values, groups, encoding, scratch, out.weight);
  encode_dense<kDtype>(scratch.scales, groups, out.scales);
  encode_dense<kDtype>(scratch.biases, groups, out.biases);
  return {-1, Fault::None};
}

}  // namespace gemma_surgery::cpu::GS_ISA
