// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// requantize on the GPU: one dispatch of metal/requantize.metal. The search for better scales
// (`refine`) runs in float64, which Metal lacks.

#include "primitives/metal_call.h"
#include "primitives/requantize.h"

namespace gemma_surgery::ops {

namespace {

constexpr int kGroupsPerThreadgroup = 4;
constexpr int kAffineThreads = 128;
constexpr int kDenseThreads = 256;

// As in the kernels.
struct MatrixShape {
  int32_t rows;
  int32_t cols;
  int32_t target_rows;
  int32_t target_cols;
};

mx::Dtype stored_dtype(const cpu::Encoding& encoding) {
  return encoding.dtype == cpu::Dtype::F32   ? mx::float32
         : encoding.dtype == cpu::Dtype::F16 ? mx::float16
                                             : mx::bfloat16;
}

}  // namespace

void Requantize::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  if (state_.refine) {
    fail("requantize", "need refine=False on a GPU stream, got True: the search runs in float64");
  }
  MetalCall call(stream());
  for (mx::array& out : outputs) {
    call.allocate(out);
  }
  if (outputs[0].size() == 0) {
    return;
  }
  const bool from_dense = state_.source.mode == cpu::Mode::Dense;
  const bool to_dense = state_.target.mode == cpu::Mode::Dense;
  std::vector<mx::array> parts;
  for (const mx::array& input : inputs) {
    parts.push_back(call.contiguous(input));
  }
  const size_t first_index = from_dense ? 1 : 3;
  const mx::array& weight = parts[0];
  const mx::array& scales = from_dense ? weight : parts[1];
  const mx::array& biases = from_dense ? weight : parts[2];
  // Kernels read no indices that were not given.
  const mx::array& columns = state_.takes_columns ? parts[first_index] : weight;
  const mx::array& rows = state_.takes_rows ? parts.back() : weight;
  const int source_cols = from_dense ? weight.shape(1) : scales.shape(1) * state_.source.group_size;
  const MatrixShape shape = {
      weight.shape(0),
      source_cols,
      outputs[0].shape(0),
      state_.takes_columns ? columns.shape(0) : source_cols};
  const MetalTypes types = metal_types(
      stored_dtype(state_.source), stored_dtype(state_.source), stored_dtype(state_.target));
  const MetalConstants constants = {
      {from_dense ? 0 : state_.source.bits},
      {from_dense ? 1 : state_.source.group_size},
      {to_dense ? 0 : state_.target.bits},
      {to_dense ? 1 : state_.target.group_size},
      flag(state_.takes_columns),
      flag(state_.takes_rows),
      flag(cpu::same_layout(state_.source, state_.target))};
  call.use("requantize", to_dense ? "requantize_dense" : "requantize_affine", types, constants);
  call.input(weight, 0);
  call.input(scales, 1);
  call.input(biases, 2);
  call.input(columns, 3);
  call.input(rows, 4);
  for (size_t i = 0; i < outputs.size(); ++i) {
    call.output(outputs[i], 5 + static_cast<int>(i));
  }
  call.parameter(shape, 8);
  if (to_dense) {
    call.dispatch(groups_for(shape.target_cols, kDenseThreads), shape.target_rows, kDenseThreads);
  } else {
    const int64_t groups = shape.target_cols / state_.target.group_size;
    call.dispatch(groups_for(groups, kGroupsPerThreadgroup), shape.target_rows, kAffineThreads);
  }
}

}  // namespace gemma_surgery::ops
