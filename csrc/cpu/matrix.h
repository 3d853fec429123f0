// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The entry points: whole matrices, checked buffers in, bytes or sums out.
// All throw std::invalid_argument on sizes, indices or values that do not fit, and are
// safe to call from several threads on distinct outputs.

#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// A byte range; `size` is checked against what the shape needs.
struct ConstBytes {
  const uint8_t* data = nullptr;
  int64_t size = 0;
};

struct MutableBytes {
  uint8_t* data = nullptr;
  int64_t size = 0;
};

// The three parts of a matrix; dense ones have a weight only.
struct Source {
  Encoding encoding;
  ConstBytes weight;
  ConstBytes scales;
  ConstBytes biases;
};

struct Target {
  Encoding encoding;
  MutableBytes weight;
  MutableBytes scales;
  MutableBytes biases;
};

struct Columns {
  const int32_t* indices;  // nullptr: all, in order
  int64_t count;
};

struct RequantizeOptions {
  int threads = 1;
  bool refine = false;
};

// Decodes each of `rows` rows of `cols` columns, takes `columns` (-1: a zero column) and
// encodes the result. Groups that move whole between equal layouts are copied as they are.
void requantize(
    const Source& source,
    int64_t rows,
    int64_t cols,
    const Columns& columns,
    const Target& target,
    const Kernels& kernels,
    const RequantizeOptions& options);

// Row i of `out` is row indices[i] of `source`, or zero bytes for -1.
void gather_rows(
    const ConstBytes& source,
    int64_t row_bytes,
    const int32_t* indices,
    int64_t count,
    const MutableBytes& out);

// The same within each of `rows` rows, in units of `unit_bytes`.
void gather_units(
    const ConstBytes& source,
    int64_t rows,
    int64_t row_bytes,
    int64_t unit_bytes,
    const int32_t* indices,
    int64_t count,
    const MutableBytes& out);

// out[r] = sum over columns of the squared values, in double; affine ones are code * scale +
// bias as real numbers, all others float32.
void row_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels);

// out[c] += sum over rows of the squared float32 values, in row order: tiles of rows may
// come in several calls.
void column_square_sums(
    const Source& source,
    int64_t rows,
    int64_t cols,
    double* out,
    const Kernels& kernels);

}  // namespace gemma_surgery::cpu
