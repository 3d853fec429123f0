// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The module `gemma_surgery._ext`: NumPy buffers in, NumPy buffers filled. Buffers are
// taken as bytes, any dtype and shape, and only their size is checked; all work runs
// without the GIL. std::invalid_argument becomes ValueError.

#include <nanobind/nanobind.h>
#include <nanobind/operators.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "arrays.h"
#include "bind_ops.h"
#include "bind_probes.h"
#include "bind_solver.h"
#include "bind_tokenizer.h"
#include "cpu/checks.h"
#include "cpu/dispatch.h"
#include "cpu/encoding.h"
#include "cpu/matrix.h"
#include "mlx/array.h"
#include "mlx/version.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace gs = gemma_surgery::cpu;
using namespace gemma_surgery::python;

namespace {

using Isa = std::optional<std::string>;

gs::Source make_source(
    const char* where,
    const gs::Encoding& encoding,
    const Input& weight,
    const OptionalInput& scales,
    const OptionalInput& biases) {
  return {
      encoding,
      input(where, "weight", weight),
      input(where, "scales", scales),
      input(where, "biases", biases)};
}

double* sums_of(const char* where, const Output& out, int64_t count) {
  const gs::MutableBytes bytes = output(where, "out", out);
  if (out.dtype() != nb::dtype<double>() ||
      reinterpret_cast<uintptr_t>(bytes.data) % alignof(double) != 0) {
    gs::fail(where, "need an aligned float64 array for `out`");
  }
  gs::check_size(where, "output", bytes.size, gs::checked_product(where, count, 8));
  return reinterpret_cast<double*>(bytes.data);
}

void requantize(
    const Input& weight,
    const OptionalInput& scales,
    const OptionalInput& biases,
    const gs::Encoding& source_encoding,
    int64_t rows,
    int64_t cols,
    const OptionalInput& columns,
    const gs::Encoding& target_encoding,
    const Output& out_weight,
    const OptionalOutput& out_scales,
    const OptionalOutput& out_biases,
    const Isa& isa,
    int threads,
    bool refine) {
  constexpr const char* kWhere = "requantize";
  const gs::Source source = make_source(kWhere, source_encoding, weight, scales, biases);
  const gs::Target target = {
      target_encoding,
      output(kWhere, "out_weight", out_weight),
      output(kWhere, "out_scales", out_scales),
      output(kWhere, "out_biases", out_biases)};
  std::optional<Indices> indices;
  if (columns) {
    indices.emplace(kWhere, "columns", *columns);
  }
  const gs::Columns chosen = {
      indices ? indices->data() : nullptr, indices ? indices->count() : cols};
  const gs::Kernels& kernels = gs::find_kernels(isa.value_or(""));
  nb::gil_scoped_release release;
  gs::requantize(source, rows, cols, chosen, target, kernels, {threads, refine});
}

void gather_rows(const Input& source, int64_t row_bytes, const Input& indices, const Output& out) {
  constexpr const char* kWhere = "gather_rows";
  const gs::ConstBytes from = input(kWhere, "source", source);
  const gs::MutableBytes to = output(kWhere, "out", out);
  const Indices rows(kWhere, "indices", indices);
  nb::gil_scoped_release release;
  gs::gather_rows(from, row_bytes, rows.data(), rows.count(), to);
}

void gather_units(
    const Input& source,
    int64_t rows,
    int64_t row_bytes,
    int64_t unit_bytes,
    const Input& indices,
    const Output& out) {
  constexpr const char* kWhere = "gather_units";
  const gs::ConstBytes from = input(kWhere, "source", source);
  const gs::MutableBytes to = output(kWhere, "out", out);
  const Indices units(kWhere, "indices", indices);
  nb::gil_scoped_release release;
  gs::gather_units(from, rows, row_bytes, unit_bytes, units.data(), units.count(), to);
}

using SquareSums = void (*)(const gs::Source&, int64_t, int64_t, double*, const gs::Kernels&);

void bind_square_sums(
    nb::module_& m,
    const char* name,
    SquareSums sums,
    bool per_row,
    const char* text) {
  m.def(
      name,
      [=](const Input& weight,
          const OptionalInput& scales,
          const OptionalInput& biases,
          const gs::Encoding& encoding,
          int64_t rows,
          int64_t cols,
          const Output& out,
          const Isa& isa) {
        const gs::Source source = make_source(name, encoding, weight, scales, biases);
        double* to = sums_of(name, out, per_row ? rows : cols);
        const gs::Kernels& kernels = gs::find_kernels(isa.value_or(""));
        nb::gil_scoped_release release;
        sums(source, rows, cols, to, kernels);
      },
      "weight"_a,
      "scales"_a.none(),
      "biases"_a.none(),
      "source"_a,
      "rows"_a,
      "cols"_a,
      "out"_a.noconvert(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      text);
}

bool equal_bytes(const Input& a, const Input& b) {
  const gs::ConstBytes left = input("equal_bytes", "a", a);
  const gs::ConstBytes right = input("equal_bytes", "b", b);
  nb::gil_scoped_release release;
  return left.size == right.size &&
         (left.size == 0 ||
          std::memcmp(left.data, right.data, static_cast<size_t>(left.size)) == 0);
}

nb::dict build_info() {
  nb::dict info;
  const auto version = [](int major, int minor, int patch) {
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
  };
  info["nanobind"] = version(NB_VERSION_MAJOR, NB_VERSION_MINOR, NB_VERSION_PATCH);
  info["mlx"] = version(MLX_VERSION_MAJOR, MLX_VERSION_MINOR, MLX_VERSION_PATCH);
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#else
  info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
  return info;
}

void bind_encoding(nb::module_& m) {
  nb::class_<gs::Encoding>(m, "Encoding", "How the rows of a matrix are laid out in bytes.")
      .def(
          "__init__",
          [](gs::Encoding* self,
             const std::string& dtype,
             int bits,
             int group_size,
             const std::string& mode) {
            new (self) gs::Encoding(gs::make_encoding(dtype, bits, group_size, mode));
          },
          "dtype"_a,
          "bits"_a = 0,
          "group_size"_a = 0,
          "mode"_a = "")
      .def_prop_ro("dtype", [](const gs::Encoding& e) { return gs::dtype_name(e.dtype); })
      .def_ro("bits", &gs::Encoding::bits)
      .def_ro("group_size", &gs::Encoding::group_size)
      .def_prop_ro("mode", [](const gs::Encoding& e) { return gs::mode_name(e.mode); })
      .def(
          "row_bytes",
          [](const gs::Encoding& e, int64_t cols) {
            const gs::RowBytes bytes = gs::row_bytes(e, cols);
            return nb::make_tuple(bytes.weight, bytes.scales, bytes.biases);
          },
          "cols"_a,
          "Bytes of one row of `cols` columns: (weight, scales, biases).")
      .def(
          "__eq__",
          [](const gs::Encoding& a, nb::object other) {
            gs::Encoding b;
            return nb::try_cast(other, b) && a.dtype == b.dtype && a.mode == b.mode &&
                   a.bits == b.bits && a.group_size == b.group_size;
          },
          "other"_a.none())
      .def("__hash__", [](const gs::Encoding& e) { return nb::hash(nb::cast(gs::describe(e))); })
      .def("__repr__", &gs::describe);
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Native kernels of gemma-surgery.";
  bind_encoding(m);
  bind_ops(m);
  bind_probes(m);
  bind_solver(m);
  bind_tokenizer(m);

  m.def(
      "requantize",
      &requantize,
      "weight"_a,
      "scales"_a.none(),
      "biases"_a.none(),
      "source"_a,
      "rows"_a,
      "cols"_a,
      "columns"_a.none(),
      "target"_a,
      "out_weight"_a.noconvert(),
      "out_scales"_a.noconvert().none(),
      "out_biases"_a.noconvert().none(),
      nb::kw_only(),
      "isa"_a.none() = nb::none(),
      "threads"_a = 1,
      "refine"_a = false,
      "Decode rows to float32, take columns (-1: zero), encode them into the output buffers.");
  m.def(
      "gather_rows",
      &gather_rows,
      "source"_a,
      "row_bytes"_a,
      "indices"_a,
      "out"_a.noconvert(),
      "Copy whole rows by index; -1 gives zero bytes.");
  m.def(
      "gather_units",
      &gather_units,
      "source"_a,
      "rows"_a,
      "row_bytes"_a,
      "unit_bytes"_a,
      "indices"_a,
      "out"_a.noconvert(),
      "Copy units of `unit_bytes` within each row by index; -1 gives zero bytes.");
  bind_square_sums(
      m,
      "row_square_sums",
      gs::row_square_sums,
      true,
      "Fill out[rows] (float64) with the sums of squares of the decoded rows.");
  bind_square_sums(
      m,
      "column_square_sums",
      gs::column_square_sums,
      false,
      "Add the squares of the decoded values of each column to out[cols] (float64).");
  m.def("equal_bytes", &equal_bytes, "a"_a, "b"_a, "True when both buffers hold the same bytes.");

  m.def(
      "cpu_features",
      [] {
        nb::dict features;
        for (const auto& [name, present] : gs::cpu_features()) {
          features[name.c_str()] = present;
        }
        return features;
      },
      "Processor features that the choice of kernels rests on.");
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const gs::Kernels* kernels : gs::available_kernels()) {
          names.emplace_back(kernels->name);
        }
        return names;
      },
      "Instruction sets with kernels that this machine can run, the widest first.");
  m.def(
      "default_isa",
      [] { return std::string(gs::find_kernels("").name); },
      "The instruction set used when none is named.");
  m.def(
      "probe_array",
      [](const mlx::core::array& array) { return array.size(); },
      "array"_a,
      "Number of elements of an mlx array: fails when this module cannot read them.");
  m.def("build_info", &build_info, "Versions that this module was compiled with.");
}
