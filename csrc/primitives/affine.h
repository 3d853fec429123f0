// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What the ops share when they are built: checks of matrices in MLX's affine format and of
// the arrays that go with them, shapes, and vmap over rows.

#pragma once

#include <string>
#include <vector>

#include "cpu/products.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace gemma_surgery::ops {

namespace mx = mlx::core;

struct Packing {
  int bits;
  int group_size;

  bool operator==(const Packing&) const = default;
};

// The parts of one matrix among the inputs of a primitive.
struct AffineArrays {
  mx::array weight;  // uint32 [rows, cols * bits / 32]
  mx::array scales;  // [rows, cols / group_size], float32, float16 or bfloat16
  mx::array biases;  // the same shape and dtype
};

[[noreturn]] void fail(const char* where, const std::string& message);

// Checks the three parts against each other; returns the number of columns.
int affine_cols(const char* where, const AffineArrays& matrix, const Packing& packing);

// float32, float16 or bfloat16.
void check_float(const char* where, const char* name, mx::Dtype dtype);

// Checks that `x` has floating point rows [..., cols].
void check_rows(const char* where, const char* name, const mx::array& x, int cols);

// Checks values that are already in memory; those yet to be computed are left to evaluation.
void check_known_indices(
    const char* where,
    const char* name,
    const mx::array& x,
    int64_t first,
    int64_t last);

// Integers of any dtype as int32; what does not fit int32 stays out of every range.
mx::array as_indices(const char* where, const char* name, const mx::array& x, mx::Stream stream);

std::string shape_text(const mx::Shape& shape);
std::string dtype_text(mx::Dtype dtype);

// shape[:-1] + (last,), and shape[:-1].
mx::Shape with_last(const mx::Shape& shape, int last);
mx::Shape without_last(const mx::Shape& shape);

// vmap of a primitive that works on the rows of its first `batched` inputs: moves the
// mapped axis to the front, where it is one more leading axis. The others must be shared.
std::vector<mx::array> rows_in_front(
    const char* where,
    std::vector<mx::array> inputs,
    const std::vector<int>& axes,
    size_t batched,
    mx::Stream stream);

}  // namespace gemma_surgery::ops
