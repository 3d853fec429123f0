// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Sums of squares in double.
//   a row of float32 values   squares are exact; 16 lanes by column, then a tree
//   a row of affine codes     per group scale^2 * sum(code^2) + 2 * scale * bias * sum(code)
//                             + n * bias^2 with exact integer sums; 16 lanes by group, then
//                             the tree: the values need not be decoded, and no float32
//                             rounding of theirs is in the sum
//   columns                   squares of the float32 values, added row by row
// No order depends on the width of the vectors.

#pragma once

#include "cpu/decode.h"
#include "cpu/shorts.h"

namespace gemma_surgery::cpu::GS_ISA {

typedef double Doubles __attribute__((vector_size(4 * kWidth)));
typedef float HalfFloats __attribute__((vector_size(2 * kWidth)));
constexpr int kDoubles = kWidth / 2;

GS_INLINE Doubles load_doubles(const float* from) {
  return __builtin_convertvector(load<HalfFloats>(from), Doubles);
}

// The tree over 16 lanes.
GS_INLINE double sum_lanes(double* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

static double square_sum(const float* values, int64_t count) {
  constexpr int kParts = kLanes / kDoubles;
  Doubles sums[kParts] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      const Doubles value = load_doubles(values + i + part * kDoubles);
      sums[part] += value * value;
    }
  }
  double lanes[kLanes];
  __builtin_memcpy(lanes, sums, sizeof(lanes));
  for (int lane = 0; i + lane < count; ++lane) {
    lanes[lane] += (double)values[i + lane] * (double)values[i + lane];
  }
  return sum_lanes(lanes);
}

static void add_squares(const float* values, int64_t count, double* out) {
  int64_t i = 0;
  for (; i + kDoubles <= count; i += kDoubles) {
    const Doubles value = load_doubles(values + i);
    store(out + i, load<Doubles>(out + i) + value * value);
  }
  for (; i < count; ++i) {
    out[i] += (double)values[i] * (double)values[i];
  }
}

// Sums of the codes and of their squares, for one group.
struct CodeMoments {
  Words sum;
  Words square;
};

template <int kGroup>
GS_INLINE CodeMoments code_moments(const uint8_t* codes) {
  CodeMoments moments = {};
  for (int i = 0; i < kGroup; i += kShorts) {
    const Shorts code = widen_to_shorts(codes + i);
    moments.sum += multiply_pairs(code, shorts(1));
    moments.square += multiply_pairs(code, code);
  }
  return moments;
}

template <int kGroup>
GS_INLINE CodeMoments nibble_moments(const uint8_t* packed) {
  CodeMoments moments = {};
  for (int i = 0; i < kGroup / 2; i += kShorts) {
    const Shorts both = widen_to_shorts(packed + i);
    const Shorts low = both & shorts(15);
    const Shorts high = shift_right(both, 4);
    moments.sum += multiply_pairs(add(low, high), shorts(1));
    moments.square += multiply_pairs(low, low) + multiply_pairs(high, high);
  }
  return moments;
}

template <int kGroup>
static double
affine_square_sum(int bits, const uint8_t* weight, int64_t groups, const Scratch& scratch) {
  constexpr bool kWhole = kGroup / 2 % kShorts == 0;
  const bool nibbles = bits == 4 && kWhole;
  if (!nibbles) {
    unpack_codes(bits, weight, groups * kGroup, scratch.codes);
  }
  double lanes[kLanes] = {};
  for (int64_t start = 0; start < groups; start += kLanes) {
    const int count = (int)(groups - start < kLanes ? groups - start : kLanes);
    alignas(64) int32_t sums[2 * kLanes] = {};
    for (int g = 0; g < count; g += 4) {
      Words moments[8] = {};
      for (int k = 0; k < 4 && g + k < count; ++k) {
        const int64_t column = (start + g + k) * kGroup;
        CodeMoments group;
        if constexpr (kWhole) {
          group = nibbles ? nibble_moments<kGroup>(weight + column / 2)
                          : code_moments<kGroup>(scratch.codes + column);
        } else {
          group = code_moments<kGroup>(scratch.codes + column);
        }
        moments[2 * k] = group.sum;
        moments[2 * k + 1] = group.square;
      }
      add_lanes8(moments, sums + 2 * g);
    }
    const float* scales = scratch.scales + start;
    const float* biases = scratch.biases + start;
    for (int g = 0; g < count; ++g) {
      const double scale = (double)scales[g];
      const double bias = (double)biases[g];
      lanes[g] +=
          (scale * scale * (double)sums[2 * g + 1] + 2.0 * scale * bias * (double)sums[2 * g]) +
          (double)kGroup * (bias * bias);
    }
  }
  return sum_lanes(lanes);
}

// Sum of the squares of one row.
static double row_square_sum(
    const Encoding& encoding,
    const uint8_t* weight,
    const uint8_t* scales,
    const uint8_t* biases,
    int64_t cols,
    const Scratch& scratch) {
  if (encoding.mode != Mode::Affine && encoding.mode != Mode::Symmetric) {
    decode_row(encoding, weight, scales, biases, cols, scratch, scratch.values);
    return square_sum(scratch.values, cols);
  }
  const int64_t groups = cols / encoding.group_size;
  decode_dense(encoding.dtype, scales, groups, scratch.scales);
  decode_dense(encoding.dtype, biases, groups, scratch.biases);
  switch (encoding.group_size) {
    case 32:
      return affine_square_sum<32>(encoding.bits, weight, groups, scratch);
    case 64:
      return affine_square_sum<64>(encoding.bits, weight, groups, scratch);
    default:
      return affine_square_sum<128>(encoding.bits, weight, groups, scratch);
  }
}

#if defined(__AVX512BW__)
// The 16 squares that a group can have are a table of two vectors.
static void add_nibble_squares(
    const uint8_t* packed,
    int group,
    int64_t groups,
    const Scratch& scratch,
    double* out) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats codes = to_floats(lanes);
  const __m512i shifts = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
  for (int64_t g = 0; g < groups; ++g) {
    const __m512 values = (__m512)(codes * splat(scratch.scales[g]) + splat(scratch.biases[g]));
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
    const __m512d low_squares = _mm512_mul_pd(low, low);
    const __m512d high_squares = _mm512_mul_pd(high, high);
    for (int i = 0; i < group; i += 8) {
      const int64_t column = g * group + i;
      const __m512i eight = _mm512_set1_epi64(load<uint32_t>(packed + column / 2));
      // The permutation reads the lowest four bits of each index.
      const __m512d squares =
          _mm512_permutex2var_pd(low_squares, _mm512_srlv_epi64(eight, shifts), high_squares);
      _mm512_storeu_pd(out + column, _mm512_add_pd(_mm512_loadu_pd(out + column), squares));
    }
  }
}
#endif

// Adds the squares of one row to the columns of `out`.
static void add_row_squares(
    const Encoding& encoding,
    const uint8_t* weight,
    const uint8_t* scales,
    const uint8_t* biases,
    int64_t cols,
    const Scratch& scratch,
    double* out) {
#if defined(__AVX512BW__)
  if (encoding.mode == Mode::Affine || encoding.mode == Mode::Symmetric) {
    if (encoding.bits == 4) {
      const int64_t groups = cols / encoding.group_size;
      decode_dense(encoding.dtype, scales, groups, scratch.scales);
      decode_dense(encoding.dtype, biases, groups, scratch.biases);
      return add_nibble_squares(weight, encoding.group_size, groups, scratch, out);
    }
  }
#endif
  decode_row(encoding, weight, scales, biases, cols, scratch, scratch.values);
  add_squares(scratch.values, cols, out);
}

}  // namespace gemma_surgery::cpu::GS_ISA
