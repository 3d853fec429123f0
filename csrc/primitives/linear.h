// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// out = x @ W^T + bias with a dense W, on a CPU stream. On a GPU stream MLX's own matmul
// does as well.

#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// x [..., cols], weight [rows, cols] -> [..., rows] of the dtype of x.
mx::array linear(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    mx::StreamOrDevice stream = {});

// Inputs: x, weight and, where there is one, bias float32 [rows].
class Linear : public mx::UnaryPrimitive {
 public:
  explicit Linear(mx::Stream stream) : mx::UnaryPrimitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  std::vector<mx::array>
  vjp(const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "Linear";
  }
};

}  // namespace gemma_surgery::ops
