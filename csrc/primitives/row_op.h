// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Norms and GELU over rows, on a CPU stream: each one pass over memory, computed in float32
// and rounded once. On a GPU stream MLX's own ops do as well.

#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

using MaybeArray = std::optional<mx::array>;

// x [..., E] -> the same shape and dtype; weights and bias [E] of any floating dtype.
mx::array
rms_norm(const mx::array& x, const MaybeArray& weight, float eps, mx::StreamOrDevice stream = {});

// h + rms_norm(y).
mx::array add_rms_norm(
    const mx::array& h,
    const mx::array& y,
    const MaybeArray& weight,
    float eps,
    mx::StreamOrDevice stream = {});

mx::array layer_norm(
    const mx::array& x,
    const MaybeArray& weight,
    const MaybeArray& bias,
    float eps,
    mx::StreamOrDevice stream = {});

mx::array gelu_tanh(const mx::array& x, mx::StreamOrDevice stream = {});

// gelu_tanh(gate) * up.
mx::array gated_gelu(const mx::array& gate, const mx::array& up, mx::StreamOrDevice stream = {});

// Inputs: one or two arrays of rows [..., E], then float32 [E]: weight and bias, where given.
class RowOp : public mx::UnaryPrimitive {
 public:
  enum class Kind { RmsNorm, AddRmsNorm, LayerNorm, GeluTanh, GatedGelu };

  struct State {
    Kind kind;
    float eps;
    bool has_weight;
    bool has_bias;

    bool operator==(const State&) const = default;
  };

  RowOp(mx::Stream stream, State state) : mx::UnaryPrimitive(stream), state_(state) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override;

 private:
  State state_;
};

}  // namespace gemma_surgery::ops
