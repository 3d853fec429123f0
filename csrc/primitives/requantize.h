// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Decodes a matrix, takes rows and columns (-1: zeros) and encodes the result.

#pragma once

#include <optional>
#include <vector>

#include "cpu/encoding.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// A dense matrix has a weight [rows, cols] only.
struct MatrixArrays {
  mx::array weight;
  std::optional<mx::array> scales;
  std::optional<mx::array> biases;
};

// One part, or weight, scales and biases, as `target` says.
std::vector<mx::array> requantize(
    const MatrixArrays& source,
    const cpu::Encoding& source_encoding,
    const std::optional<mx::array>& columns,
    const std::optional<mx::array>& rows,
    const cpu::Encoding& target,
    bool refine,
    mx::StreamOrDevice stream = {});

// Inputs: weight, scales and biases where the source is quantized, then columns int32 and
// rows int32 where chosen. Outputs: weight, and scales and biases where the target is
// quantized. Encodings are Dense or Affine.
class Requantize : public mx::Primitive {
 public:
  struct State {
    cpu::Encoding source;
    cpu::Encoding target;
    bool takes_columns;
    bool takes_rows;
    bool refine;
  };

  Requantize(mx::Stream stream, const State& state) : mx::Primitive(stream), state_(state) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "Requantize";
  }

 private:
  State state_;
};

}  // namespace gemma_surgery::ops
