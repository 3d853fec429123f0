// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// softmax(scale * q k^T) v without [T, S] in memory, and rotary embedding, on a CPU stream.
// On a GPU stream MLX's own ops do as well.

#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

enum class MaskKind { Full, Causal, Boolean };

struct AttentionOptions {
  float scale;
  MaskKind mask;
  int window;  // of a causal mask, 0: none

  bool operator==(const AttentionOptions&) const = default;
};

// q [B, H, T, D], k and v [B, K, S, D] -> [B, H, T, D], laid out as [B, T, H, D]. `mask_array`:
// bool that broadcasts to [B, H, T, S] for Boolean, int32 [T] image blocks for Causal, or none.
mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const AttentionOptions& options,
    const std::optional<mx::array>& mask_array,
    mx::StreamOrDevice stream = {});

// x [B, H, T, D], the first `dims` of D rotated by (offset + t) / periods; float32 [dims / 2].
mx::array
rope(const mx::array& x, const mx::array& periods, int offset, mx::StreamOrDevice stream = {});

// Inputs: q, k, v and, where there is one, the array of the mask.
class Attention : public mx::UnaryPrimitive {
 public:
  Attention(mx::Stream stream, AttentionOptions options)
      : mx::UnaryPrimitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "Attention";
  }

 private:
  AttentionOptions options_;
};

// Inputs: x, periods.
class Rope : public mx::UnaryPrimitive {
 public:
  Rope(mx::Stream stream, int offset) : mx::UnaryPrimitive(stream), offset_(offset) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "Rope";
  }

 private:
  int offset_;
};

}  // namespace gemma_surgery::ops
