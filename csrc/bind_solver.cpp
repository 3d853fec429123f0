// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The solver on NumPy buffers: float32 matrices in, outputs filled, without the GIL.

#include "bind_solver.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "cpu/dispatch.h"
#include "cpu/solve.h"

namespace gemma_surgery::python {

namespace {

using namespace nb::literals;
using Isa = std::optional<std::string>;

gs::FloatOptions options(const Isa& isa, int threads) {
  return {&gs::find_kernels(isa.value_or("")), threads};
}

template <typename Array>
int64_t length(const Array& array, size_t axis) {
  return axis < array.ndim() ? static_cast<int64_t>(array.shape(axis)) : -1;
}

// Refuses all but an aligned float32 matrix [rows, cols].
template <typename Array>
void check_matrix(
    const char* where,
    const char* name,
    const Array& array,
    int64_t rows,
    int64_t cols) {
  contiguous_bytes(where, name, array);
  if (array.dtype() != nb::dtype<float>() || array.ndim() != 2 || length(array, 0) != rows ||
      length(array, 1) != cols || reinterpret_cast<uintptr_t>(array.data()) % alignof(float) != 0) {
    std::string shape;
    for (size_t axis = 0; axis < array.ndim(); ++axis) {
      shape += (axis > 0 ? ", " : "") + std::to_string(length(array, axis));
    }
    gs::fail(
        where,
        "need an aligned float32 matrix [" + std::to_string(rows) + ", " + std::to_string(cols) +
            "] for `" + name + "`, got shape [" + shape + "] of " +
            std::to_string(array.itemsize()) + "-byte elements");
  }
}

const float*
values(const char* where, const char* name, const Input& array, int64_t rows, int64_t cols) {
  check_matrix(where, name, array, rows, cols);
  return static_cast<const float*>(array.data());
}

float*
values(const char* where, const char* name, const Output& array, int64_t rows, int64_t cols) {
  check_matrix(where, name, array, rows, cols);
  return static_cast<float*>(array.data());
}

double solve_factor(
    const Input& hessian,
    double damping,
    const Output& upper,
    const Isa& isa,
    int threads) {
  constexpr const char* kWhere = "factor";
  const int64_t size = length(hessian, 0);
  const gs::Hessian from = {values(kWhere, "hessian", hessian, size, size), size};
  float* const to = values(kWhere, "upper", upper, size, size);
  const gs::FloatOptions how = options(isa, threads);
  nb::gil_scoped_release release;
  return gs::inverse_factor(from, damping, to, how);
}

void solve_hessian(const Input& upper, const Output& hessian, const Isa& isa, int threads) {
  constexpr const char* kWhere = "hessian";
  const int64_t size = length(upper, 0);
  const float* const from = values(kWhere, "upper", upper, size, size);
  float* const to = values(kWhere, "hessian", hessian, size, size);
  const gs::FloatOptions how = options(isa, threads);
  nb::gil_scoped_release release;
  gs::hessian_of_factor(from, size, to, how);
}

double solve_reconstruct(
    const Input& weight,
    const Input& hessian,
    const Input& kept,
    double damping,
    const Output& out,
    const Isa& isa,
    int threads) {
  constexpr const char* kWhere = "reconstruct";
  const int64_t size = length(hessian, 0);
  const int64_t rows = length(weight, 0);
  const gs::Hessian inner = {values(kWhere, "hessian", hessian, size, size), size};
  const float* const from = values(kWhere, "weight", weight, rows, size);
  const Indices indices(kWhere, "kept", kept);
  float* const to = values(kWhere, "out", out, rows, indices.count());
  const gs::FloatOptions how = options(isa, threads);
  nb::gil_scoped_release release;
  return gs::reconstruct(from, rows, inner, indices.data(), indices.count(), damping, to, how);
}

void solve_round(
    const Input& weight,
    const Input& upper,
    const OptionalInput& order,
    const gs::Encoding& encoding,
    const Output& out_weight,
    const Output& out_scales,
    const Output& out_biases,
    const Isa& isa,
    int threads) {
  constexpr const char* kWhere = "round_compensated";
  const int64_t rows = length(weight, 0);
  const int64_t cols = length(weight, 1);
  const float* const from = values(kWhere, "weight", weight, rows, cols);
  const float* const factor = values(kWhere, "upper", upper, cols, cols);
  std::optional<Indices> columns;
  if (order) {
    columns.emplace(kWhere, "order", *order);
    gs::check_size(kWhere, "order", columns->count() * 4, cols * 4);
  }
  const gs::Target target = {
      encoding,
      output(kWhere, "out_weight", out_weight),
      output(kWhere, "out_scales", out_scales),
      output(kWhere, "out_biases", out_biases)};
  const gs::FloatOptions how = options(isa, threads);
  nb::gil_scoped_release release;
  gs::round_compensated(from, rows, cols, factor, columns ? columns->data() : nullptr, target, how);
}

}  // namespace

void bind_solver(nb::module_& m) {
  m.def(
      "solve_factor",
      &solve_factor,
      "hessian"_a,
      "damping"_a,
      "upper"_a.noconvert(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      "threads"_a = 0,
      "Fill `upper` with the upper Cholesky factor of the inverse of the damped Hessian; return "
      "the "
      "damping that it took.");
  m.def(
      "solve_hessian",
      &solve_hessian,
      "upper"_a,
      "hessian"_a.noconvert(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      "threads"_a = 0,
      "Fill `hessian` with the damped Hessian of which `upper` is the inverse factor.");
  m.def(
      "solve_reconstruct",
      &solve_reconstruct,
      "weight"_a,
      "hessian"_a,
      "kept"_a,
      "damping"_a,
      "out"_a.noconvert(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      "threads"_a = 0,
      "Fill `out` with the least-squares weights of the kept columns; return the damping.");
  m.def(
      "solve_round",
      &solve_round,
      "weight"_a,
      "upper"_a,
      "order"_a.none(),
      "encoding"_a,
      "out_weight"_a.noconvert(),
      "out_scales"_a.noconvert(),
      "out_biases"_a.noconvert(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      "threads"_a = 0,
      "Round to an affine encoding column by column, errors made up for by later columns.");
}

}  // namespace gemma_surgery::python
