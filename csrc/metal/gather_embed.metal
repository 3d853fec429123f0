// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// out[i, :] = factor * row token_map[ids[i]] of an affine table (ids[i] without a map), in
// float32 with one rounding to O; an id outside the map or the table gives a row of NaN.
// Grid: x threads over chunks of 16 columns, y over ids. S, O: float, half or bfloat.
// Limits: any number of ids and rows; cols divisible by the group size.
// Moves, per id: cols * bits / 8 packed bytes, 2 * cols / group scales, cols outputs.

#include "metal/affine.h"

// Products and sums round one by one, as on the CPU.
#pragma METAL fp contract(off)

constant int kBits [[function_constant(0)]];
constant int kGroup [[function_constant(1)]];
constant bool kMapped [[function_constant(2)]];

struct EmbedShape {
  int rows;
  int cols;
  int map_size;
  float factor;
};

[[kernel]] void gather_embed(
    const device int* ids [[buffer(0)]],
    const device ushort* weight [[buffer(1)]],
    const device S* scales [[buffer(2)]],
    const device S* biases [[buffer(3)]],
    const device int* token_map [[buffer(4)]],
    device O* out [[buffer(5)]],
    constant EmbedShape& shape [[buffer(6)]],
    uint2 position [[thread_position_in_grid]]) {
  const int column = int(position.x) * kChunk;
  if (column >= shape.cols) {
    return;
  }
  device O* to = out + ulong(position.y) * ulong(shape.cols) + column;
  int row = ids[position.y];
  if (kMapped) {
    row = row >= 0 && row < shape.map_size ? token_map[row] : -1;
  }
  if (row < 0 || row >= shape.rows) {
    for (int i = 0; i < kChunk; ++i) {
      to[i] = O(NAN);
    }
    return;
  }
  const ulong words = ulong(row) * ulong(shape.cols / kChunk) + ulong(column / kChunk);
  const ulong group = ulong(row) * ulong(shape.cols / kGroup) + ulong(column / kGroup);
  const float scale = float(scales[group]);
  const float bias = float(biases[group]);
  float codes[kChunk];
  unpack_chunk(kBits, weight + words * ulong(kBits), codes);
  for (int i = 0; i < kChunk; ++i) {
    const float product = codes[i] * scale;
    const float value = product + bias;
    to[i] = O(shape.factor * value);
  }
}
