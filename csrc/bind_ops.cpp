// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The MLX ops of `gemma_surgery._ext`. Documented where users meet them, in
// gemma_surgery/ops; arguments come in the order given there.

#include "bind_ops.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "primitives/cpu_call.h"
#include "primitives/gather_embed.h"
#include "primitives/quantized_linear.h"
#include "primitives/requantize.h"
#include "primitives/tied_head.h"

namespace gemma_surgery::python {

namespace nb = nanobind;
using namespace nb::literals;
namespace mx = mlx::core;

namespace {

using MaybeArray = std::optional<mx::array>;
using MaybeDtype = std::optional<mx::Dtype>;

cpu::Activations activations_of(const std::string& name) {
  if (name == "full") {
    return cpu::Activations::Full;
  }
  if (name == "int16") {
    return cpu::Activations::Int16;
  }
  if (name != "int8") {
    ops::fail("quantized_linear", "need activations `full`, `int16` or `int8`, got `" + name + "`");
  }
  return cpu::Activations::Int8;
}

cpu::Encoding encoding_of(mx::Dtype dtype, int group_size, int bits) {
  ops::check_float("requantize", "dtype", dtype);
  const char* name = cpu::dtype_name(ops::cpu_dtype(dtype));
  return cpu::make_encoding(name, bits, group_size, bits > 0 ? "affine" : "");
}

std::vector<mx::array> requantize(
    const mx::array& weight,
    const MaybeArray& scales,
    const MaybeArray& biases,
    int group_size,
    int bits,
    const MaybeArray& columns,
    const MaybeArray& rows,
    int target_group_size,
    int target_bits,
    const MaybeDtype& target_dtype,
    bool refine,
    mx::StreamOrDevice stream) {
  if (scales.has_value() != biases.has_value()) {
    ops::fail("requantize", "need scales and biases together, got one of them");
  }
  const mx::Dtype dtype = scales ? scales->dtype() : weight.dtype();
  ops::check_float("requantize", scales ? "scales" : "weight", dtype);
  return ops::requantize(
      {weight, scales, biases},
      scales ? encoding_of(dtype, group_size, bits) : encoding_of(dtype, 0, 0),
      columns,
      rows,
      encoding_of(target_dtype.value_or(dtype), target_group_size, target_bits),
      refine,
      stream);
}

}  // namespace

void bind_ops(nb::module_& m) {
  m.def(
      "gather_embed",
      [](const mx::array& ids,
         const MaybeArray& token_map,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         float scale,
         int group_size,
         int bits,
         const MaybeDtype& dtype,
         mx::StreamOrDevice stream) {
        return ops::gather_embed(
            ids, token_map, {weight, scales, biases}, {bits, group_size}, scale, dtype, stream);
      },
      "ids"_a,
      "token_map"_a.none(),
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "scale"_a,
      "group_size"_a,
      "bits"_a,
      "dtype"_a.none(),
      "stream"_a.none());
  m.def(
      "tied_logits",
      [](const mx::array& h,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         std::optional<float> softcap,
         int group_size,
         int bits,
         const MaybeDtype& dtype,
         mx::StreamOrDevice stream) {
        return ops::tied_logits(
            h,
            {weight, scales, biases},
            {{bits, group_size}, softcap.value_or(0.0f)},
            dtype,
            stream);
      },
      "h"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "softcap"_a.none(),
      "group_size"_a,
      "bits"_a,
      "dtype"_a.none(),
      "stream"_a.none());
  m.def(
      "tied_argmax",
      [](const mx::array& h,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         const MaybeArray& inverse_map,
         std::optional<float> softcap,
         int group_size,
         int bits,
         mx::StreamOrDevice stream) {
        return ops::tied_argmax(
            h,
            {weight, scales, biases},
            {{bits, group_size}, softcap.value_or(0.0f)},
            inverse_map,
            stream);
      },
      "h"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "inverse_map"_a.none(),
      "softcap"_a.none(),
      "group_size"_a,
      "bits"_a,
      "stream"_a.none());
  m.def(
      "tied_topk",
      [](const mx::array& h,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         int k,
         const MaybeArray& inverse_map,
         std::optional<float> softcap,
         int group_size,
         int bits,
         mx::StreamOrDevice stream) {
        return ops::tied_topk(
            h,
            {weight, scales, biases},
            {{bits, group_size}, softcap.value_or(0.0f)},
            k,
            inverse_map,
            stream);
      },
      "h"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "k"_a,
      "inverse_map"_a.none(),
      "softcap"_a.none(),
      "group_size"_a,
      "bits"_a,
      "stream"_a.none());
  m.def(
      "tied_logprob",
      [](const mx::array& h,
         const mx::array& targets,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         std::optional<float> softcap,
         int group_size,
         int bits,
         mx::StreamOrDevice stream) {
        return ops::tied_logprob(
            h,
            targets,
            {weight, scales, biases},
            {{bits, group_size}, softcap.value_or(0.0f)},
            stream);
      },
      "h"_a,
      "targets"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "softcap"_a.none(),
      "group_size"_a,
      "bits"_a,
      "stream"_a.none());
  m.def(
      "tied_choice",
      [](const mx::array& h,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         const mx::array& ids,
         std::optional<float> softcap,
         int group_size,
         int bits,
         mx::StreamOrDevice stream) {
        return ops::tied_choice(
            h, {weight, scales, biases}, {{bits, group_size}, softcap.value_or(0.0f)}, ids, stream);
      },
      "h"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "ids"_a,
      "softcap"_a.none(),
      "group_size"_a,
      "bits"_a,
      "stream"_a.none());
  m.def(
      "quantized_linear",
      [](const mx::array& x,
         const mx::array& weight,
         const mx::array& scales,
         const mx::array& biases,
         const MaybeArray& bias,
         int group_size,
         int bits,
         const std::string& activations,
         mx::StreamOrDevice stream) {
        return ops::quantized_linear(
            x,
            {weight, scales, biases},
            {bits, group_size},
            bias,
            activations_of(activations),
            stream);
      },
      "x"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a,
      "bias"_a.none(),
      "group_size"_a,
      "bits"_a,
      "activations"_a,
      "stream"_a.none());
  m.def(
      "requantize_arrays",
      &requantize,
      "weight"_a,
      "scales"_a.none(),
      "biases"_a.none(),
      "group_size"_a,
      "bits"_a,
      "columns"_a.none(),
      "rows"_a.none(),
      "target_group_size"_a,
      "target_bits"_a,
      "target_dtype"_a.none(),
      "refine"_a,
      "stream"_a.none());
  bind_float_ops(m);
  m.def(
      "_set_cpu_options",
      &ops::set_cpu_options,
      "isa"_a,
      "threads"_a,
      "For tests: the instruction set and number of threads of all ops; ``('', 0)`` restores.");
}

}  // namespace gemma_surgery::python
