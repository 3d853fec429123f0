// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The MLX ops of `gemma_surgery._ext` on floating point arrays; see bind_ops.cpp.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/variant.h>

#include "bind_ops.h"
#include "primitives/attention.h"
#include "primitives/linear.h"
#include "primitives/row_op.h"

namespace gemma_surgery::python {

namespace nb = nanobind;
using namespace nb::literals;
namespace mx = mlx::core;

namespace {

using MaybeArray = std::optional<mx::array>;

mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    bool causal,
    int window,
    const MaybeArray& image_blocks,
    const MaybeArray& mask,
    mx::StreamOrDevice stream) {
  const auto kind = causal ? ops::MaskKind::Causal
                    : mask ? ops::MaskKind::Boolean
                           : ops::MaskKind::Full;
  return ops::attention(q, k, v, {scale, kind, window}, causal ? image_blocks : mask, stream);
}

}  // namespace

void bind_float_ops(nb::module_& m) {
  m.def("rms_norm", &ops::rms_norm, "x"_a, "weight"_a.none(), "eps"_a, "stream"_a.none());
  m.def(
      "add_rms_norm",
      &ops::add_rms_norm,
      "h"_a,
      "y"_a,
      "weight"_a.none(),
      "eps"_a,
      "stream"_a.none());
  m.def(
      "layer_norm",
      &ops::layer_norm,
      "x"_a,
      "weight"_a.none(),
      "bias"_a.none(),
      "eps"_a,
      "stream"_a.none());
  m.def("gelu_tanh", &ops::gelu_tanh, "x"_a, "stream"_a.none());
  m.def("gated_gelu", &ops::gated_gelu, "gate"_a, "up"_a, "stream"_a.none());
  m.def("linear", &ops::linear, "x"_a, "weight"_a, "bias"_a.none(), "stream"_a.none());
  m.def("rope", &ops::rope, "x"_a, "periods"_a, "offset"_a, "stream"_a.none());
  m.def(
      "attention",
      &attention,
      "q"_a,
      "k"_a,
      "v"_a,
      "scale"_a,
      "causal"_a,
      "window"_a,
      "image_blocks"_a.none(),
      "mask"_a.none(),
      "stream"_a.none());
}

}  // namespace gemma_surgery::python
