// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Least squares on a calibration Hessian, the mean of x x^T of the inputs of a linear layer.
//
// Everything is float32. A sum over earlier unknowns is one chain of fused multiply-adds per block
// of 192 (128 when rounding), and the blocks' sums are subtracted in order; so results have the
// same bits for any number of threads and on every instruction set, the portable loops included.
//
// All throw std::invalid_argument on sizes, indices and values that do not fit.

#pragma once

#include <cstdint>

#include "cpu/float_kernels.h"
#include "cpu/matrix.h"

namespace gemma_surgery::cpu {

// Symmetric [size, size] of which the upper triangle with the diagonal is read.
struct Hessian {
  const float* data;
  int64_t size;
};

// What is added to the diagonal is a share of its mean. Where the matrix is not positive definite
// with the share asked for, it grows by 0.01 up to 1, then tenfold up to 1000.
// Unknowns that no data say anything about, with a diagonal element of 0, count with the mean.

// The upper Cholesky factor U of the inverse of the damped Hessian, inverse = U^T U, [size, size];
// returns the damping. Needs 192 * size floats besides.
double
inverse_factor(const Hessian& hessian, double damping, float* upper, const FloatOptions& options);

// The damped Hessian [size, size] that an inverse factor stands for. Needs as much besides.
void hessian_of_factor(
    const float* upper,
    int64_t size,
    float* hessian,
    const FloatOptions& options);

// For weight [rows, hessian.size] the weights [rows, count] of the kept columns that minimize
//   mean |W x - W' x_kept|^2 + damping * mean diagonal * |W' - W_kept|^2;
// returns the damping. `kept` are distinct columns. Needs count^2 + rows * size floats besides.
double reconstruct(
    const float* weight,
    int64_t rows,
    const Hessian& hessian,
    const int32_t* kept,
    int64_t count,
    double damping,
    float* out,
    const FloatOptions& options);

// Rounds weight [rows, cols] to an affine encoding one column after the other; each column's error
// is made up for by those behind it (GPTQ), as `upper` [cols, cols] says. Scales and biases are
// fitted by least squares in which a column's error counts 1 / U_jj^2, as it does in the output.
//   order nullptr: columns as they come; the scale and bias of a group are fitted to the values
//     that its columns have when its first one is reached.
//   order [cols]: columns in this order, which `upper` is in as well; scales and biases are
//     fitted to the weights as given, and a column stays in its group.
// Needs rows * cols * 5 / 4 floats besides.
void round_compensated(
    const float* weight,
    int64_t rows,
    int64_t cols,
    const float* upper,
    const int32_t* order,
    const Target& target,
    const FloatOptions& options);

}  // namespace gemma_surgery::cpu
