// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/linear.h"

#include "cpu/dense_product.h"
#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr const char* kWhere = "linear";

}  // namespace

mx::array linear(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = cpu_stream(kWhere, stream_or_device);
  check_float(kWhere, "weight", weight.dtype());
  if (weight.ndim() != 2) {
    fail(kWhere, "need a weight [rows, cols], got " + shape_text(weight.shape()));
  }
  check_rows(kWhere, "x", x, weight.shape(1));
  std::vector<mx::array> inputs = {x, weight};
  if (bias) {
    check_float(kWhere, "bias", bias->dtype());
    if (bias->shape() != mx::Shape{weight.shape(0)}) {
      fail(
          kWhere,
          "need a bias [" + std::to_string(weight.shape(0)) +
              "], one for each row of `weight`, got " + shape_text(bias->shape()));
    }
    inputs.push_back(mx::astype(*bias, mx::float32, stream));
  }
  return mx::array(
      with_last(x.shape(), weight.shape(0)),
      x.dtype(),
      std::make_shared<Linear>(stream),
      std::move(inputs));
}

void Linear::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const cpu::FloatRows x = call.rows(inputs[0]);
  const cpu::FloatRows w = call.rows(inputs[1]);
  const auto* bias = inputs.size() == 3 ? call.contiguous<float>(inputs[2]) : nullptr;
  const cpu::MutableFloatRows rows = call.output_rows(out);
  const cpu::DenseMatrix matrix = {
      w.data, w.dtype, inputs[1].shape(0), inputs[1].shape(1), w.stride};
  const cpu::FloatOptions options = float_options();
  call.run([=] { cpu::dense_product(matrix, x, bias, rows, options); });
}

void Linear::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu_stream(kWhere);
}

std::vector<mx::array> Linear::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  const auto as_rows = [&](const mx::array& x) {
    const int count = x.shape(-1) == 0 ? 0 : static_cast<int>(x.size() / x.shape(-1));
    return mx::reshape(x, {count, x.shape(-1)}, stream());
  };
  const mx::array& dy = cotangents[0];
  std::vector<mx::array> gradients;
  for (const int index : argnums) {
    mx::array gradient = dy;
    if (index == 0) {
      gradient = mx::matmul(dy, primals[1], stream());
    } else if (index == 1) {
      gradient = mx::matmul(mx::transpose(as_rows(dy), stream()), as_rows(primals[0]), stream());
    } else {
      gradient = mx::sum(mx::astype(as_rows(dy), mx::float32, stream()), 0, false, stream());
    }
    gradients.push_back(
        mx::astype(gradient, primals[static_cast<size_t>(index)].dtype(), stream()));
  }
  return gradients;
}

std::pair<std::vector<mx::array>, std::vector<int>>
Linear::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front(kWhere, inputs, axes, 1, stream());
  mx::Shape shape = output_shapes(moved)[0];
  const mx::Dtype dtype = moved[0].dtype();
  return {
      {mx::array(std::move(shape), dtype, std::make_shared<Linear>(stream()), std::move(moved))},
      {0}};
}

std::vector<mx::Shape> Linear::output_shapes(const std::vector<mx::array>& inputs) {
  return {with_last(inputs[0].shape(), inputs[1].shape(0))};
}

}  // namespace gemma_surgery::ops
