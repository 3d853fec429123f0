// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Logits of a few table rows for a few rows of h, by one simdgroup: 32 lanes share the
// columns, every packed code is read and decoded once for kVectors rows of h, and sums are
// in float32: scale * sum of code * h + bias * sum of h, chunk by chunk.

#pragma once

#include "metal/affine.h"

constant int kBits [[function_constant(0)]];
constant int kGroup [[function_constant(1)]];

// One row of h alone, or four at a time.
constant bool kSingle [[function_constant(2)]];
constant constexpr int kSeveral = 4;

// Table rows of one simdgroup at a time.
constant constexpr int kRows = 4;

struct HeadShape {
  int rows;
  int cols;
  int count;  // rows of h
  float softcap;
};

inline float capped(float product, float softcap) {
  return softcap > 0.0f ? softcap * precise::tanh(product / softcap) : product;
}

template <int kWidth, int kVectors>
inline void add_products(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    constant HeadShape& shape,
    int first_row,
    int first_vector,
    uint lane,
    thread float* sums) {
  for (int column = int(lane) * kChunk; column < shape.cols; column += 32 * kChunk) {
    float values[kVectors][kChunk];
    float totals[kVectors];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v) {
      const int vector = min(first_vector + v, shape.count - 1);
      const device X* from = h + ulong(vector) * ulong(shape.cols) + column;
      totals[v] = 0.0f;
#pragma clang loop unroll(full)
      for (int i = 0; i < kChunk; ++i) {
        values[v][i] = float(from[i]);
        totals[v] += values[v][i];
      }
    }
#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
      // Rows past the end repeat the last one; their sums are not stored.
      const ulong row = ulong(min(first_row + r, shape.rows - 1));
      const ulong chunk = row * ulong(shape.cols / kChunk) + ulong(column / kChunk);
      const ulong group = row * ulong(shape.cols / kGroup) + ulong(column / kGroup);
      float codes[kChunk];
      unpack_chunk<kWidth>(weight + chunk * ulong(kWidth), codes);
      const float scale = float(scales[group]);
      const float bias = float(biases[group]);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v) {
        float dot = 0.0f;
#pragma clang loop unroll(full)
        for (int i = 0; i < kChunk; ++i) {
          dot += codes[i] * values[v][i];
        }
        sums[v * kRows + r] += scale * dot + bias * totals[v];
      }
    }
  }
}

// sums[v * kRows + r], the same in every lane: logit of row first_row + r for row
// first_vector + v of h.
template <int kVectors>
inline void head_logits(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    constant HeadShape& shape,
    int first_row,
    int first_vector,
    uint lane,
    thread float* sums) {
#pragma clang loop unroll(full)
  for (int i = 0; i < kVectors * kRows; ++i) {
    sums[i] = 0.0f;
  }
#define ADD_PRODUCTS(width)      \
  add_products<width, kVectors>( \
      weight, scales, biases, h, shape, first_row, first_vector, lane, sums)
  if (kBits == 2) {
    ADD_PRODUCTS(2);
  } else if (kBits == 3) {
    ADD_PRODUCTS(3);
  } else if (kBits == 4) {
    ADD_PRODUCTS(4);
  } else if (kBits == 5) {
    ADD_PRODUCTS(5);
  } else if (kBits == 6) {
    ADD_PRODUCTS(6);
  } else {
    ADD_PRODUCTS(8);
  }
#undef ADD_PRODUCTS
#pragma clang loop unroll(full)
  for (int i = 0; i < kVectors * kRows; ++i) {
    sums[i] = capped(simd_sum(sums[i]), shape.softcap);
  }
}
