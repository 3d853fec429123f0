// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The row kernels that exist once per instruction set, as a table of functions.
// All tables give the same bits: every operation is a correctly rounded IEEE one,
// nothing is contracted, and every sum has a fixed order.

#pragma once

#include "cpu/types.h"

namespace gemma_surgery::cpu {

// Lanes of every float sum, and of the widest vector.
inline constexpr int64_t kLanes = 16;

// Elements that a kernel may read or write past the end of a scratch array.
inline constexpr int64_t kSlack = 32;

enum class Fault : uint8_t {
  None,
  NonFinite,   // an input is infinite or not a number
  OutOfRange,  // a result does not fit the stored dtype
};

struct EncodeResult {
  int64_t column;  // of the first fault, -1 if none
  Fault fault;
};

// Buffers of one worker. Every array has room for kSlack elements more than named.
struct Scratch {
  float* values;    // [cols] decoded source row, then one zero for padding
  float* gathered;  // [target cols]
  uint8_t* codes;   // [max(cols, target cols)]
  float* scales;    // [groups] decoded
  float* biases;    // [groups] decoded
  float* inverses;  // [groups] 1 / scale
  float* minima;    // [groups]
  float* maxima;    // [groups]
};

struct EncodedRow {
  uint8_t* weight;
  uint8_t* scales;
  uint8_t* biases;
};

struct ProductKernels;
struct FloatKernels;
struct SolveKernels;

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

  // Decodes `cols` columns of an affine row, times `factor`, to elements of `out_dtype`.
  void (*embed)(
      const Encoding& encoding,
      const uint8_t* weight,
      const uint8_t* scales,
      const uint8_t* biases,
      int64_t cols,
      float factor,
      const Scratch& scratch,
      Dtype out_dtype,
      uint8_t* out);

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

  // Sum of the squares of `cols` columns in double: of the float32 values, or, for affine
  // codes, of code * scale + bias without the roundings to float32.
  double (*row_square_sum)(
      const Encoding& encoding,
      const uint8_t* weight,
      const uint8_t* scales,
      const uint8_t* biases,
      int64_t cols,
      const Scratch& scratch);

  // out[i] += the square of float32 value i, in double.
  void (*add_row_squares)(
      const Encoding& encoding,
      const uint8_t* weight,
      const uint8_t* scales,
      const uint8_t* biases,
      int64_t cols,
      const Scratch& scratch,
      double* out);

  const ProductKernels* products;
  const FloatKernels* floats;
  const SolveKernels* solve;
};

}  // namespace gemma_surgery::cpu
