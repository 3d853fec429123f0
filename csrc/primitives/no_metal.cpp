// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The GPU side of every primitive in a build without Metal: an error.

#include "primitives/gather_embed.h"
#include "primitives/quantized_linear.h"
#include "primitives/requantize.h"
#include "primitives/tied_head.h"

namespace gemma_surgery::ops {

namespace {

[[noreturn]] void need_cpu(const char* where) {
  throw std::invalid_argument(
      std::string("[") + where + "] need a CPU stream: this build of MLX has no Metal");
}

}  // namespace

void GatherEmbed::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu("gather_embed");
}

void TiedLogits::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu("tied_logits");
}

void TiedTopk::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  need_cpu("tied_topk");
}

void TiedLogprob::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  need_cpu("tied_logprob");
}

void QuantizedLinear::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu("quantized_linear");
}

void Requantize::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  need_cpu("requantize");
}

}  // namespace gemma_surgery::ops
