// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// out[..., :] = scale * row token_map[ids[...]] of a quantized table.

#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// ids of any shape [...] and an integer dtype, token_map int32 [V0] -> [..., E] of `dtype`
// (default: that of the scales).
mx::array gather_embed(
    const mx::array& ids,
    const std::optional<mx::array>& token_map,
    const AffineArrays& table,
    const Packing& packing,
    float scale,
    std::optional<mx::Dtype> dtype,
    mx::StreamOrDevice stream = {});

// Inputs: ids int32, weight, scales, biases and, where there is one, token_map int32.
class GatherEmbed : public mx::UnaryPrimitive {
 public:
  GatherEmbed(mx::Stream stream, Packing packing, float scale, mx::Dtype dtype)
      : mx::UnaryPrimitive(stream), packing_(packing), scale_(scale), dtype_(dtype) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "GatherEmbed";
  }

 private:
  Packing packing_;
  float scale_;
  mx::Dtype dtype_;
};

}  // namespace gemma_surgery::ops
