// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// out = x @ W^T + bias with a quantized W.

#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// x [..., cols] -> [..., rows] of the dtype of x; bias [rows] of any floating dtype.
mx::array quantized_linear(
    const mx::array& x,
    const AffineArrays& matrix,
    const Packing& packing,
    const std::optional<mx::array>& bias,
    cpu::Activations activations,
    mx::StreamOrDevice stream = {});

// Inputs: x, weight, scales, biases and, where there is one, bias float32 [rows].
class QuantizedLinear : public mx::UnaryPrimitive {
 public:
  QuantizedLinear(mx::Stream stream, Packing packing, cpu::Activations activations)
      : mx::UnaryPrimitive(stream), packing_(packing), activations_(activations) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  std::vector<mx::array>
  vjp(const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "QuantizedLinear";
  }

 private:
  Packing packing_;
  cpu::Activations activations_;
};

}  // namespace gemma_surgery::ops
