// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The limits of the machine, measured without the GIL.

#include "bind_probes.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "cpu/dispatch.h"
#include "cpu/probes.h"

namespace gemma_surgery::python {

namespace {

using namespace nb::literals;
using Isa = std::optional<std::string>;

nb::tuple read_pass(const Input& buffer, int threads, const Isa& isa) {
  const gs::ConstBytes bytes = input("read_pass", "buffer", buffer);
  const gs::Kernels& kernels = gs::find_kernels(isa.value_or(""));
  gs::ReadPass pass;
  {
    nb::gil_scoped_release release;
    pass = gs::read_pass(bytes.data, bytes.size, threads, &kernels);
  }
  return nb::make_tuple(pass.seconds, pass.sum);
}

template <gs::Rate (*kMeasure)(int, const gs::Kernels*)>
nb::tuple rate(int threads, const Isa& isa) {
  const gs::Kernels& kernels = gs::find_kernels(isa.value_or(""));
  gs::Rate found;
  {
    nb::gil_scoped_release release;
    found = kMeasure(threads, &kernels);
  }
  return nb::make_tuple(found.per_second, found.method);
}

}  // namespace

void bind_probes(nb::module_& m) {
  m.def(
      "read_pass",
      &read_pass,
      "buffer"_a,
      nb::kw_only(),
      "threads"_a = 0,
      "isa"_a.none() = nb::none(),
      "Read a buffer of a multiple of 4096 bytes once: (seconds, sum of its 32-bit words). "
      "threads=0: one per processor.");
  m.def(
      "float_rate",
      &rate<gs::float_rate>,
      nb::kw_only(),
      "threads"_a = 0,
      "isa"_a.none() = nb::none(),
      "Float32 multiply-adds in registers: (operations per second, by what).");
  m.def(
      "int8_rate",
      &rate<gs::int8_rate>,
      nb::kw_only(),
      "threads"_a = 0,
      "isa"_a.none() = nb::none(),
      "Multiply-adds of 8-bit integers in registers: (operations per second, by what).");
}

}  // namespace gemma_surgery::python
