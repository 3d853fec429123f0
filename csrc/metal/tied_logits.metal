// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// out[t, v] = softcap * tanh(sum over e of h[t, e] * table[v, e] / softcap), softcap 0: the
// sum itself; plus bias[v] where there is one, which is how quantized_linear uses it. float32
// throughout, one rounding to O.
// Grid: x over rows of h, one or four at a time, so that neighbours share rows of the table; y
// threadgroups of 2 simdgroups, each with 4 rows of the table. X, S, O: float, half or bfloat.
// Limits: cols divisible by the group size.
// Moves: the packed table once (from the cache for every further 4 rows of h), h once for every
// 8 rows of the table (from the cache), the output once.

#include "metal/head.h"

constant bool kBiased [[function_constant(3)]];

constant constexpr int kSimdgroups = 2;

template <int kVectors>
inline void write_logits(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    const device float* bias,
    device O* out,
    constant HeadShape& shape,
    int first_row,
    int first_vector,
    uint lane) {
  float sums[kVectors * kRows];
  head_logits<kVectors>(weight, scales, biases, h, shape, first_row, first_vector, lane, sums);
#pragma clang loop unroll(full)
  for (int i = 0; i < kVectors * kRows; ++i) {
    const int vector = first_vector + i / kRows;
    const int row = first_row + i % kRows;
    if (int(lane) == i && vector < shape.count && row < shape.rows) {
      const float sum = kBiased ? sums[i] + bias[row] : sums[i];
      out[ulong(vector) * ulong(shape.rows) + row] = O(sum);
    }
  }
}

[[kernel]] void tied_logits(
    const device X* h [[buffer(0)]],
    const device ushort* weight [[buffer(1)]],
    const device S* scales [[buffer(2)]],
    const device S* biases [[buffer(3)]],
    device O* out [[buffer(4)]],
    constant HeadShape& shape [[buffer(5)]],
    const device float* bias [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const int first_row = (int(group.y) * kSimdgroups + int(simdgroup)) * kRows;
  if (first_row >= shape.rows) {
    return;
  }
  if (kSingle) {
    write_logits<1>(weight, scales, biases, h, bias, out, shape, first_row, int(group.x), lane);
  } else {
    write_logits<kSeveral>(
        weight, scales, biases, h, bias, out, shape, first_row, int(group.x) * kSeveral, lane);
  }
}
