// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/row_op.h"

#include "cpu/row_ops.h"
#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

using Kind = RowOp::Kind;

const char* op_name(Kind kind) {
  switch (kind) {
    case Kind::RmsNorm:
      return "rms_norm";
    case Kind::AddRmsNorm:
      return "add_rms_norm";
    case Kind::LayerNorm:
      return "layer_norm";
    case Kind::GeluTanh:
      return "gelu_tanh";
    default:
      return "gated_gelu";
  }
}

size_t row_inputs(Kind kind) {
  return kind == Kind::AddRmsNorm || kind == Kind::GatedGelu ? 2 : 1;
}

mx::array make(
    Kind kind,
    std::vector<mx::array> inputs,
    const MaybeArray& weight,
    const MaybeArray& bias,
    float eps,
    mx::StreamOrDevice stream_or_device) {
  const char* where = op_name(kind);
  const mx::Stream stream = cpu_stream(where, stream_or_device);
  const mx::array x = inputs[0];
  if (x.ndim() == 0) {
    fail(where, "need rows [..., cols], got a scalar");
  }
  for (const mx::array& rows : inputs) {
    check_float(where, "x", rows.dtype());
    if (rows.shape() != x.shape() || rows.dtype() != x.dtype()) {
      fail(
          where,
          "need two arrays of one shape and dtype, got " + dtype_text(x.dtype()) + " " +
              shape_text(x.shape()) + " and " + dtype_text(rows.dtype()) + " " +
              shape_text(rows.shape()));
    }
  }
  const auto add_vector = [&](const char* name, const MaybeArray& vector) {
    if (!vector) {
      return;
    }
    check_float(where, name, vector->dtype());
    if (vector->shape() != mx::Shape{x.shape(-1)}) {
      fail(
          where,
          "need [" + std::to_string(x.shape(-1)) + "] for `" + name + "`, got " +
              shape_text(vector->shape()));
    }
    inputs.push_back(mx::astype(*vector, mx::float32, stream));
  };
  const mx::Shape shape = x.shape();
  const mx::Dtype dtype = x.dtype();
  add_vector("weight", weight);
  add_vector("bias", bias);
  const RowOp::State state = {kind, eps, weight.has_value(), bias.has_value()};
  return mx::array(shape, dtype, std::make_shared<RowOp>(stream, state), std::move(inputs));
}

}  // namespace

mx::array
rms_norm(const mx::array& x, const MaybeArray& weight, float eps, mx::StreamOrDevice stream) {
  return make(Kind::RmsNorm, {x}, weight, std::nullopt, eps, stream);
}

mx::array add_rms_norm(
    const mx::array& h,
    const mx::array& y,
    const MaybeArray& weight,
    float eps,
    mx::StreamOrDevice stream) {
  return make(Kind::AddRmsNorm, {h, y}, weight, std::nullopt, eps, stream);
}

mx::array layer_norm(
    const mx::array& x,
    const MaybeArray& weight,
    const MaybeArray& bias,
    float eps,
    mx::StreamOrDevice stream) {
  return make(Kind::LayerNorm, {x}, weight, bias, eps, stream);
}

mx::array gelu_tanh(const mx::array& x, mx::StreamOrDevice stream) {
  return make(Kind::GeluTanh, {x}, std::nullopt, std::nullopt, 0.0f, stream);
}

mx::array gated_gelu(const mx::array& gate, const mx::array& up, mx::StreamOrDevice stream) {
  return make(Kind::GatedGelu, {gate, up}, std::nullopt, std::nullopt, 0.0f, stream);
}

void RowOp::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const cpu::FloatRows x = call.rows(inputs[0]);
  size_t next = row_inputs(state_.kind);
  const cpu::FloatRows y = next == 2 ? call.rows(inputs[1]) : cpu::FloatRows{};
  const auto* weight = state_.has_weight ? call.contiguous<float>(inputs[next++]) : nullptr;
  const auto* bias = state_.has_bias ? call.contiguous<float>(inputs[next]) : nullptr;
  const cpu::MutableFloatRows rows = call.output_rows(out);
  const int64_t cols = out.shape(-1);
  const cpu::FloatOptions options = float_options();
  call.run([=, kind = state_.kind, eps = state_.eps] {
    switch (kind) {
      case Kind::RmsNorm:
        return cpu::rms_norm(x, cols, weight, eps, rows, options);
      case Kind::AddRmsNorm:
        return cpu::add_rms_norm(x, y, cols, weight, eps, rows, options);
      case Kind::LayerNorm:
        return cpu::layer_norm(x, cols, weight, bias, eps, rows, options);
      case Kind::GeluTanh:
        return cpu::gelu_tanh(x, cols, rows, options);
      case Kind::GatedGelu:
        return cpu::gated_gelu(x, y, cols, rows, options);
    }
  });
}

void RowOp::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu_stream(op_name(state_.kind));
}

std::pair<std::vector<mx::array>, std::vector<int>>
RowOp::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front(op_name(state_.kind), inputs, axes, row_inputs(state_.kind), stream());
  mx::Shape shape = moved[0].shape();
  const mx::Dtype dtype = moved[0].dtype();
  return {
      {mx::array(
          std::move(shape), dtype, std::make_shared<RowOp>(stream(), state_), std::move(moved))},
      {0}};
}

bool RowOp::is_equivalent(const mx::Primitive& other) const {
  return state_ == static_cast<const RowOp&>(other).state_;
}

std::vector<mx::Shape> RowOp::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

const char* RowOp::name() const {
  switch (state_.kind) {
    case Kind::RmsNorm:
      return "RmsNorm";
    case Kind::AddRmsNorm:
      return "AddRmsNorm";
    case Kind::LayerNorm:
      return "LayerNorm";
    case Kind::GeluTanh:
      return "GeluTanh";
    default:
      return "GatedGelu";
  }
}

}  // namespace gemma_surgery::ops
