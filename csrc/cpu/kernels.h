// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The row kernels that exist once per instruction set, as a table of functions.
// All tables give the same bits: every operation is a correctly rounded IEEE one,
// nothing is contracted, and every sum has a fixed order.

#pragma once

#include "cpu/types.h"

namespace gemma_surgery::cpu {

// The widest vector that a kernel may read or write past the end of a scratch row.
inline constexpr int64_t kLanes = 16;

// Group arrays that the refinement of affine groups needs.
inline constexpr int64_t kRefineArrays = 12;

enum class Fault : uint8_t {
  None,
  NonFinite,   // an input is infinite or not a number
  OutOfRange,  // a result does not fit the stored dtype
};

struct EncodeResult {
  int64_t column;  // of the first fault, -1 if none
  Fault fault;
};

// Buffers of one worker. Every array has room for kLanes elements more than named.
struct Scratch {
  float* values;    // [cols] decoded source row, then one zero for padding
  float* gathered;  // [target cols]
  uint8_t* codes;   // [max(cols, target cols)]
  float* scales;    // [groups] decoded
  float* biases;    // [groups] decoded
  float* inverses;  // [groups] 1 / scale
  float* minima;    // [groups]
  float* maxima;    // [groups]
  float* refine;    // [kRefineArrays][groups]
};

struct EncodedRow {
  uint8_t* weight;
  uint8_t* scales;
  uint8_t* biases;
};

struct Kernels {
  const char* name;

  // Decodes `cols` columns to float32; quantized rows start at a group.
  void (*decode)(
      const Encoding& encoding,
      const uint8_t* weight,
      const uint8_t* scales,
      const uint8_t* biases,
      int64_t cols,
      const Scratch& scratch,
      float* out);

  // Encodes `cols` float32 columns; `padded[g]` marks groups whose zeros must stay exact.
  EncodeResult (*encode)(
      const Encoding& encoding,
      const float* values,
      int64_t cols,
      const uint8_t* padded,
      bool refine,
      const Scratch& scratch,
      const EncodedRow& out);

  // out[i] = source[columns[i]]; every column is in range.
  void (*gather)(const float* source, const int32_t* columns, int64_t count, float* out);

  // Sum of squares in double: 16 lanes by column, then a fixed tree.
  double (*square_sum)(const float* values, int64_t count);

  // out[i] += values[i]^2 in double.
  void (*add_squares)(const float* values, int64_t count, double* out);
};

}  // namespace gemma_surgery::cpu
