// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Decodes a matrix, takes rows and columns (-1: zeros) and encodes the result.
//   requantize_affine  one simdgroup per group of the target: groups that move whole between
//                      equal layouts are copied; in the others codes are the nearest ones for
//                      scale and bias as stored, and groups with a zero column have an exact zero
//                      grid: x 4 groups of a row, y rows; 4 simdgroups
//   requantize_dense   one thread per value; grid: x threads over columns, y rows
// S: type of a dense source, or of its scales and biases; O: the same of the target.
// What cannot be an error on a GPU becomes NaN: values that are not finite or do not fit O
// make the scale and bias of their group NaN, indices outside the matrix make values NaN.
// Moves: taken source groups once, the target once.

#include "metal/affine.h"
#include "metal/affine_fit.h"

constant int kSourceBits [[function_constant(0)]];  // 0: dense
constant int kSourceGroup [[function_constant(1)]];
constant int kTargetBits [[function_constant(2)]];
constant int kTargetGroup [[function_constant(3)]];
constant bool kTakesColumns [[function_constant(4)]];
constant bool kTakesRows [[function_constant(5)]];
// Source and target have one layout: whole groups are copied.
constant bool kCopies [[function_constant(6)]];

constant constexpr int kSimdgroups = 4;
constant constexpr int kMostGroup = 128;

// The same type keeps its bits, even those of a NaN; others go through float.
template <typename To, typename From>
struct Conversion {
  static To of(From value) {
    return To(float(value));
  }
};

template <typename T>
struct Conversion<T, T> {
  static T of(T value) {
    return value;
  }
};

struct MatrixShape {
  int rows;  // of the source
  int cols;
  int target_rows;
  int target_cols;
};

struct Source {
  const device uchar* weight;
  const device S* scales;
  const device S* biases;
  int cols;
};

inline const device uchar* packed_row(const Source source, int row) {
  return source.weight + ulong(row) * ulong(source.cols / 8) * ulong(kSourceBits);
}

inline float value_at(const Source source, int row, int column) {
  if (kSourceBits == 0) {
    const device S* values = (const device S*)source.weight;
    return float(values[ulong(row) * ulong(source.cols) + column]);
  }
  const ulong group = ulong(row) * ulong(source.cols / kSourceGroup) + column / kSourceGroup;
  const float code = float(code_at(packed_row(source, row), column, kSourceBits));
  const float product = code * float(source.scales[group]);
  return product + float(source.biases[group]);
}

inline int index_at(bool takes, const device int* indices, uint i) {
  return takes ? indices[i] : int(i);
}

// Words of the target group from one code of each column, each word by one lane.
inline void pack_group(const threadgroup uchar* codes, device uint* packed, uint lane) {
  const int words = kTargetGroup / 32 * kTargetBits;
  if (int(lane) < words) {
    const int first_bit = int(lane) * 32;
    uint word = 0;
    for (int i = first_bit / kTargetBits; i * kTargetBits < first_bit + 32; ++i) {
      const int shift = i * kTargetBits - first_bit;
      word |= shift >= 0 ? uint(codes[i]) << shift : uint(codes[i]) >> -shift;
    }
    packed[lane] = word;
  }
}

[[kernel]] void requantize_affine(
    const device uchar* weight [[buffer(0)]],
    const device S* scales [[buffer(1)]],
    const device S* biases [[buffer(2)]],
    const device int* columns [[buffer(3)]],
    const device int* rows [[buffer(4)]],
    device uint* out_weight [[buffer(5)]],
    device O* out_scales [[buffer(6)]],
    device O* out_biases [[buffer(7)]],
    constant MatrixShape& shape [[buffer(8)]],
    uint2 position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup uchar all_codes[kSimdgroups * kMostGroup];
  const int groups = shape.target_cols / kTargetGroup;
  const int group = int(position.x) * kSimdgroups + int(simdgroup);
  if (group >= groups) {
    return;
  }
  threadgroup uchar* codes = all_codes + simdgroup * kMostGroup;
  const Source source = {weight, scales, biases, shape.cols};
  const int per_lane = kTargetGroup / 32;
  const int row = index_at(kTakesRows, rows, position.y);
  const bool row_exists = row >= 0 && row < shape.rows;
  const ulong target_group = ulong(position.y) * ulong(groups) + ulong(group);
  device uint* packed = out_weight + target_group * ulong(kTargetGroup / 32 * kTargetBits);

  int taken[kMostPerLane];
  bool pads = false;
  bool moves_whole = kCopies;
  const int start = index_at(kTakesColumns, columns, uint(group * kTargetGroup));
  for (int i = 0; i < per_lane; ++i) {
    const int local = i * 32 + int(lane);
    taken[i] = index_at(kTakesColumns, columns, uint(group * kTargetGroup + local));
    pads = pads || taken[i] == -1;
    moves_whole = moves_whole && taken[i] == start + local;
  }
  moves_whole = moves_whole && start >= 0 && start % kTargetGroup == 0 &&
                start + kTargetGroup <= shape.cols && (row_exists || row == -1);

  if (simd_all(moves_whole)) {
    for (int i = 0; i < per_lane; ++i) {
      codes[i * 32 + lane] =
          row_exists ? uchar(code_at(packed_row(source, row), taken[i], kSourceBits)) : uchar(0);
    }
    if (lane == 0) {
      const ulong from =
          ulong(max(row, 0)) * ulong(shape.cols / kTargetGroup) + ulong(start / kTargetGroup);
      out_scales[target_group] = row_exists ? Conversion<O, S>::of(scales[from]) : O(0.0f);
      out_biases[target_group] = row_exists ? Conversion<O, S>::of(biases[from]) : O(0.0f);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    pack_group(codes, packed, lane);
    return;
  }

  float values[kMostPerLane];
  float low = INFINITY;
  float high = -INFINITY;
  bool finite = true;
  for (int i = 0; i < per_lane; ++i) {
    const bool zero = taken[i] == -1 || (row == -1 && taken[i] >= 0 && taken[i] < shape.cols);
    const bool exists = row_exists && taken[i] >= 0 && taken[i] < shape.cols;
    values[i] = zero ? 0.0f : exists ? value_at(source, row, taken[i]) : NAN;
    low = min(low, values[i]);
    high = max(high, values[i]);
    finite = finite && isfinite(values[i]);
  }
  finite = simd_all(finite);
  pads = simd_any(pads);
  low = simd_min(low);
  high = simd_max(high);
  const int last_code = (1 << kTargetBits) - 1;
  Fit fit = {NAN, NAN};
  if (finite && pads) {
    fit = fit_exact_zero(values, per_lane, low, high, last_code, lane);
  } else if (finite) {
    fit = fit_affine(low, high, float(last_code));
  }
  const bool stored = isfinite(fit.scale) && isfinite(fit.bias);
  // A true division gives MLX's own codes where the fit was not rounded.
  const bool divides = Stored<O>::mantissa_bits() == 24 && fit.scale != 0.0f;
  const float inverse = inverse_of(fit.scale);
  for (int i = 0; i < per_lane; ++i) {
    const float above = values[i] - fit.bias;
    const float steps = divides ? above / fit.scale : above * inverse;
    const float code = max(min(steps, float(last_code)), 0.0f);
    codes[i * 32 + lane] = stored ? uchar(rint(code)) : uchar(0);
  }
  if (lane == 0) {
    out_scales[target_group] = stored ? O(fit.scale) : O(NAN);
    out_biases[target_group] = stored ? O(fit.bias) : O(NAN);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  pack_group(codes, packed, lane);
}

[[kernel]] void requantize_dense(
    const device uchar* weight [[buffer(0)]],
    const device S* scales [[buffer(1)]],
    const device S* biases [[buffer(2)]],
    const device int* columns [[buffer(3)]],
    const device int* rows [[buffer(4)]],
    device O* out [[buffer(5)]],
    constant MatrixShape& shape [[buffer(8)]],
    uint2 position [[thread_position_in_grid]]) {
  if (int(position.x) >= shape.target_cols) {
    return;
  }
  const int row = index_at(kTakesRows, rows, position.y);
  const int column = index_at(kTakesColumns, columns, position.x);
  device O& to = out[ulong(position.y) * ulong(shape.target_cols) + position.x];
  const bool outside = row < -1 || row >= shape.rows || column < -1 || column >= shape.cols;
  if (outside) {
    to = O(NAN);
  } else if (row < 0 || column < 0) {
    to = O(0.0f);
  } else if (kCopies) {
    const device S* values = (const device S*)weight;
    to = Conversion<O, S>::of(values[ulong(row) * ulong(shape.cols) + column]);
  } else {
    const Source source = {weight, scales, biases, shape.cols};
    to = O(value_at(source, row, column));
  }
}
