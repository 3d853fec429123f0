// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One block of logits, for reductions over the vocabulary: 8 simdgroups take 256 table rows
// for up to four rows of h, and hand each logit to `keep`.

#pragma once

#include "metal/head.h"

constant constexpr int kBlock = 256;
constant constexpr int kBlockThreads = 256;
constant constexpr int kBlockRows = kBlock / (kBlockThreads / 32);  // of one simdgroup

// Calls keep(v, row in block, logit) once for every row of the table in this block.
template <int kVectors, typename Keep>
inline void block_logits(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    constant HeadShape& shape,
    int block,
    int first_vector,
    uint simdgroup,
    uint lane,
    Keep keep) {
  for (int step = 0; step < kBlockRows; step += kRows) {
    const int local = int(simdgroup) * kBlockRows + step;
    const int first_row = block * kBlock + local;
    if (first_row >= shape.rows) {
      break;
    }
    float sums[kVectors * kRows];
    head_logits<kVectors>(weight, scales, biases, h, shape, first_row, first_vector, lane, sums);
#pragma clang loop unroll(full)
    for (int i = 0; i < kVectors * kRows; ++i) {
      if (int(lane) == i && first_row + i % kRows < shape.rows) {
        keep(i / kRows, local + i % kRows, sums[i]);
      }
    }
  }
}
