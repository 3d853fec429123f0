// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/quantized_linear.h"

#include <numeric>

#include "cpu/add_bias.h"
#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr const char* kWhere = "quantized_linear";

}  // namespace

mx::array quantized_linear(
    const mx::array& x,
    const AffineArrays& matrix,
    const Packing& packing,
    const std::optional<mx::array>& bias,
    cpu::Activations activations,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = mx::to_stream(stream_or_device);
  check_rows(kWhere, "x", x, affine_cols(kWhere, matrix, packing));
  const int rows = matrix.weight.shape(0);
  std::vector<mx::array> inputs = {x, matrix.weight, matrix.scales, matrix.biases};
  if (bias) {
    check_float(kWhere, "bias", bias->dtype());
    if (bias->shape() != mx::Shape{rows}) {
      fail(
          kWhere,
          "need a bias [" + std::to_string(rows) + "], one for each row of `weight`, got " +
              shape_text(bias->shape()));
    }
    inputs.push_back(mx::astype(*bias, mx::float32, stream));
  }
  return mx::array(
      with_last(x.shape(), rows),
      x.dtype(),
      std::make_shared<QuantizedLinear>(stream, packing, activations),
      std::move(inputs));
}

void QuantizedLinear::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const cpu::AffineMatrix matrix = call.matrix(inputs, 1, packing_);
  const cpu::FloatRows x = call.rows(inputs[0]);
  const auto* bias = inputs.size() == 5 ? call.contiguous<float>(inputs[4]) : nullptr;
  const cpu::MutableFloatRows rows = call.output_rows(out);
  const cpu::ProductOptions options = cpu_options(activations_);
  call.run([=] {
    cpu::quantized_product(matrix, x, rows, options);
    if (bias) {
      cpu::add_bias(bias, matrix.rows, x.count, rows, options);
    }
  });
}

// With respect to x alone: the matrix is frozen.
std::vector<mx::array> QuantizedLinear::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  std::vector<mx::array> gradients;
  for (const int index : argnums) {
    if (index == 4) {
      const mx::array& dy = cotangents[0];
      std::vector<int> leading(dy.ndim() - 1);
      std::iota(leading.begin(), leading.end(), 0);
      gradients.push_back(mx::sum(mx::astype(dy, mx::float32, stream()), leading, false, stream()));
    } else if (index == 0) {
      gradients.push_back(
          mx::astype(
              mx::quantized_matmul(
                  cotangents[0],
                  primals[1],
                  primals[2],
                  primals[3],
                  false,
                  packing_.group_size,
                  packing_.bits,
                  "affine",
                  stream()),
              primals[0].dtype(),
              stream()));
    } else {
      fail(kWhere, "need gradients with respect to x or bias, got the quantized matrix");
    }
  }
  return gradients;
}

std::pair<std::vector<mx::array>, std::vector<int>>
QuantizedLinear::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front(kWhere, inputs, axes, 1, stream());
  mx::Shape shape = output_shapes(moved)[0];
  const mx::Dtype dtype = moved[0].dtype();
  return {
      {mx::array(
          std::move(shape),
          dtype,
          std::make_shared<QuantizedLinear>(stream(), packing_, activations_),
          std::move(moved))},
      {0}};
}

bool QuantizedLinear::is_equivalent(const mx::Primitive& other) const {
  const auto& that = static_cast<const QuantizedLinear&>(other);
  return packing_ == that.packing_ && activations_ == that.activations_;
}

std::vector<mx::Shape> QuantizedLinear::output_shapes(const std::vector<mx::array>& inputs) {
  return {with_last(inputs[0].shape(), inputs[1].shape(0))};
}

}  // namespace gemma_surgery::ops
