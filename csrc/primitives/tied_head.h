// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The head of a language model: softcap * tanh(h @ W^T / softcap) over the rows of a
// quantized table, and what is read off these logits without writing them down.

#pragma once

#include <optional>
#include <utility>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// The table and what is done to its products; softcap 0: nothing.
struct HeadOptions {
  Packing packing;
  float softcap;

  bool operator==(const HeadOptions&) const = default;
};

// h [..., E] -> [..., V] of `dtype` (default: that of h).
mx::array tied_logits(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    std::optional<mx::Dtype> dtype,
    mx::StreamOrDevice stream = {});

// h [..., E] -> values float32 [..., k] in descending order, ids int32 [..., k]: rows of the
// table, or inverse_map[row].
std::pair<mx::array, mx::array> tied_topk(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    int k,
    const std::optional<mx::array>& inverse_map,
    mx::StreamOrDevice stream = {});

// The same for the largest alone: values [...], ids [...].
std::pair<mx::array, mx::array> tied_argmax(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    const std::optional<mx::array>& inverse_map,
    mx::StreamOrDevice stream = {});

// h [..., E], targets [...] (rows, or -1) -> log-probabilities and log-sums, float32 [...].
std::pair<mx::array, mx::array> tied_logprob(
    const mx::array& h,
    const mx::array& targets,
    const AffineArrays& table,
    const HeadOptions& options,
    mx::StreamOrDevice stream = {});

// The largest logit among the rows of the table that ids [V] does not give -1: ids [...] and
// log-probabilities among the same rows, float32 [...]. On a CPU stream only.
std::pair<mx::array, mx::array> tied_choice(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    const mx::array& ids,
    mx::StreamOrDevice stream = {});

// Inputs: h, weight, scales, biases.
class TiedLogits : public mx::UnaryPrimitive {
 public:
  TiedLogits(mx::Stream stream, HeadOptions options, mx::Dtype dtype)
      : mx::UnaryPrimitive(stream), options_(options), dtype_(dtype) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "TiedLogits";
  }

 private:
  HeadOptions options_;
  mx::Dtype dtype_;
};

// Inputs: h, weight, scales, biases and, where there is one, inverse_map int32 [V].
// Outputs: values float32 [..., k], ids int32 [..., k]. tied_argmax is k = 1.
class TiedTopk : public mx::Primitive {
 public:
  TiedTopk(mx::Stream stream, HeadOptions options, int k)
      : mx::Primitive(stream), options_(options), k_(k) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "TiedTopk";
  }

 private:
  HeadOptions options_;
  int k_;
};

// Inputs: h, targets int32 [...], weight, scales, biases.
// Outputs: log-probabilities float32 [...], log-sums float32 [...].
class TiedLogprob : public mx::Primitive {
 public:
  TiedLogprob(mx::Stream stream, HeadOptions options) : mx::Primitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "TiedLogprob";
  }

 private:
  HeadOptions options_;
};

// Inputs: h, weight, scales, biases, ids int32 [V].
// Outputs: ids int32 [...], log-probabilities float32 [...].
class TiedChoice : public mx::Primitive {
 public:
  TiedChoice(mx::Stream stream, HeadOptions options) : mx::Primitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>>
  vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "TiedChoice";
  }

 private:
  HeadOptions options_;
};

}  // namespace gemma_surgery::ops
