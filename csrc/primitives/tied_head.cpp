// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/tied_head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

void check_head(
    const char* where,
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options) {
  check_rows(where, "h", h, affine_cols(where, table, options.packing));
  if (!(options.softcap >= 0) || std::isinf(options.softcap)) {
    fail(where, "need a positive softcap or none, got " + std::to_string(options.softcap));
  }
}

cpu::Head head_of(
    CpuCall& call,
    const std::vector<mx::array>& inputs,
    size_t first,
    const HeadOptions& options) {
  return {call.matrix(inputs, first, options.packing), options.softcap};
}

// Rows of the head, -1 for what is no row; NaN is put in their place afterwards.
std::vector<int32_t> safe_targets(const int32_t* targets, int64_t count, int64_t rows) {
  std::vector<int32_t> safe(targets, targets + count);
  for (int32_t& target : safe) {
    target = target < rows ? std::max(target, -1) : -1;
  }
  return safe;
}

}  // namespace

mx::array tied_logits(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    std::optional<mx::Dtype> dtype,
    mx::StreamOrDevice stream_or_device) {
  constexpr const char* kWhere = "tied_logits";
  const mx::Stream stream = mx::to_stream(stream_or_device);
  check_head(kWhere, h, table, options);
  const mx::Dtype out_dtype = dtype.value_or(h.dtype());
  check_float(kWhere, "dtype", out_dtype);
  return mx::array(
      with_last(h.shape(), table.weight.shape(0)),
      out_dtype,
      std::make_shared<TiedLogits>(stream, options, out_dtype),
      {h, table.weight, table.scales, table.biases});
}

void TiedLogits::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const cpu::Head head = head_of(call, inputs, 1, options_);
  const cpu::FloatRows h = call.rows(inputs[0]);
  const cpu::MutableFloatRows rows = call.output_rows(out);
  const cpu::ProductOptions options = cpu_options();
  call.run([=] { cpu::tied_logits(head, h, rows, options); });
}

std::pair<std::vector<mx::array>, std::vector<int>>
TiedLogits::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front("tied_logits", inputs, axes, 1, stream());
  mx::Shape shape = output_shapes(moved)[0];
  return {
      {mx::array(
          std::move(shape),
          dtype_,
          std::make_shared<TiedLogits>(stream(), options_, dtype_),
          std::move(moved))},
      {0}};
}

bool TiedLogits::is_equivalent(const mx::Primitive& other) const {
  const auto& that = static_cast<const TiedLogits&>(other);
  return options_ == that.options_ && dtype_ == that.dtype_;
}

std::vector<mx::Shape> TiedLogits::output_shapes(const std::vector<mx::array>& inputs) {
  return {with_last(inputs[0].shape(), inputs[1].shape(0))};
}

namespace {

std::vector<mx::array>
make_topk(mx::Stream stream, const HeadOptions& options, int k, std::vector<mx::array> inputs) {
  const mx::Shape shape = with_last(inputs[0].shape(), k);
  return mx::array::make_arrays(
      {shape, shape},
      {mx::float32, mx::int32},
      std::make_shared<TiedTopk>(stream, options, k),
      std::move(inputs));
}

std::vector<mx::array> checked_topk(
    const char* where,
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    int k,
    const std::optional<mx::array>& inverse_map,
    mx::Stream stream) {
  check_head(where, h, table, options);
  const int rows = table.weight.shape(0);
  if (k < 1 || k > rows) {
    fail(
        where,
        "need k between 1 and the " + std::to_string(rows) + " rows of `weight`, got " +
            std::to_string(k));
  }
  std::vector<mx::array> inputs = {h, table.weight, table.scales, table.biases};
  if (inverse_map) {
    if (inverse_map->dtype() != mx::int32 || inverse_map->shape() != mx::Shape{rows}) {
      fail(
          where,
          "need int32 [" + std::to_string(rows) + "] for `inverse_map`, got " +
              dtype_text(inverse_map->dtype()) + " " + shape_text(inverse_map->shape()));
    }
    inputs.push_back(*inverse_map);
  }
  return make_topk(stream, options, k, std::move(inputs));
}

}  // namespace

std::pair<mx::array, mx::array> tied_topk(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    int k,
    const std::optional<mx::array>& inverse_map,
    mx::StreamOrDevice stream) {
  auto parts = checked_topk("tied_topk", h, table, options, k, inverse_map, mx::to_stream(stream));
  return {std::move(parts[0]), std::move(parts[1])};
}

std::pair<mx::array, mx::array> tied_argmax(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    const std::optional<mx::array>& inverse_map,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = mx::to_stream(stream_or_device);
  const auto parts = checked_topk("tied_argmax", h, table, options, 1, inverse_map, stream);
  return {mx::squeeze(parts[0], -1, stream), mx::squeeze(parts[1], -1, stream)};
}

void TiedTopk::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  CpuCall call(stream());
  const cpu::Head head = head_of(call, inputs, 1, options_);
  const cpu::FloatRows h = call.rows(inputs[0]);
  const auto* ids = inputs.size() == 5 ? call.contiguous<int32_t>(inputs[4]) : nullptr;
  auto* values = call.output<float>(outputs[0]);
  auto* chosen = call.output<int32_t>(outputs[1]);
  const cpu::ProductOptions options = cpu_options();
  call.run([=, k = k_] { cpu::tied_topk(head, h, k, ids, values, chosen, options); });
}

std::pair<std::vector<mx::array>, std::vector<int>>
TiedTopk::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front("tied_topk", inputs, axes, 1, stream());
  return {make_topk(stream(), options_, k_, std::move(moved)), {0, 0}};
}

bool TiedTopk::is_equivalent(const mx::Primitive& other) const {
  const auto& that = static_cast<const TiedTopk&>(other);
  return options_ == that.options_ && k_ == that.k_;
}

std::vector<mx::Shape> TiedTopk::output_shapes(const std::vector<mx::array>& inputs) {
  const mx::Shape shape = with_last(inputs[0].shape(), k_);
  return {shape, shape};
}

namespace {

std::vector<mx::array>
make_logprob(mx::Stream stream, const HeadOptions& options, std::vector<mx::array> inputs) {
  const mx::Shape shape = inputs[1].shape();
  return mx::array::make_arrays(
      {shape, shape},
      {mx::float32, mx::float32},
      std::make_shared<TiedLogprob>(stream, options),
      std::move(inputs));
}

}  // namespace

std::pair<mx::array, mx::array> tied_logprob(
    const mx::array& h,
    const mx::array& targets,
    const AffineArrays& table,
    const HeadOptions& options,
    mx::StreamOrDevice stream_or_device) {
  constexpr const char* kWhere = "tied_logprob";
  const mx::Stream stream = mx::to_stream(stream_or_device);
  check_head(kWhere, h, table, options);
  if (table.weight.shape(0) == 0) {
    fail(kWhere, "need at least one row of `weight`, got " + shape_text(table.weight.shape()));
  }
  if (targets.shape() != without_last(h.shape())) {
    fail(
        kWhere,
        "need a target for each row of `h`, " + shape_text(without_last(h.shape())) + ", got " +
            shape_text(targets.shape()));
  }
  check_known_indices(kWhere, "targets", targets, -1, table.weight.shape(0) - 1);
  auto parts = make_logprob(
      stream,
      options,
      {h,
       as_indices(kWhere, "targets", targets, stream),
       table.weight,
       table.scales,
       table.biases});
  return {std::move(parts[0]), std::move(parts[1])};
}

void TiedLogprob::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  CpuCall call(stream());
  const cpu::Head head = head_of(call, inputs, 2, options_);
  const cpu::FloatRows h = call.rows(inputs[0]);
  const auto* targets = call.contiguous<int32_t>(inputs[1]);
  auto* log_probs = call.output<float>(outputs[0]);
  auto* log_sums = call.output<float>(outputs[1]);
  const cpu::ProductOptions options = cpu_options();
  call.run([=] {
    const auto safe = safe_targets(targets, h.count, head.matrix.rows);
    cpu::tied_logprob(head, h, safe.data(), log_probs, log_sums, options);
    for (int64_t t = 0; t < h.count; ++t) {
      if (targets[t] != safe[static_cast<size_t>(t)]) {
        log_probs[t] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  });
}

std::pair<std::vector<mx::array>, std::vector<int>>
TiedLogprob::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front("tied_logprob", inputs, axes, 2, stream());
  return {make_logprob(stream(), options_, std::move(moved)), {0, 0}};
}

bool TiedLogprob::is_equivalent(const mx::Primitive& other) const {
  return options_ == static_cast<const TiedLogprob&>(other).options_;
}

std::vector<mx::Shape> TiedLogprob::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[1].shape(), inputs[1].shape()};
}

namespace {

std::vector<mx::array>
make_choice(mx::Stream stream, const HeadOptions& options, std::vector<mx::array> inputs) {
  const mx::Shape shape = without_last(inputs[0].shape());
  return mx::array::make_arrays(
      {shape, shape},
      {mx::int32, mx::float32},
      std::make_shared<TiedChoice>(stream, options),
      std::move(inputs));
}

}  // namespace

std::pair<mx::array, mx::array> tied_choice(
    const mx::array& h,
    const AffineArrays& table,
    const HeadOptions& options,
    const mx::array& ids,
    mx::StreamOrDevice stream) {
  constexpr const char* kWhere = "tied_choice";
  check_head(kWhere, h, table, options);
  const int rows = table.weight.shape(0);
  if (ids.dtype() != mx::int32 || ids.shape() != mx::Shape{rows}) {
    fail(
        kWhere,
        "need int32 [" + std::to_string(rows) + "] for `ids`, got " + dtype_text(ids.dtype()) +
            " " + shape_text(ids.shape()));
  }
  auto parts = make_choice(
      cpu_stream(kWhere, stream), options, {h, table.weight, table.scales, table.biases, ids});
  return {std::move(parts[0]), std::move(parts[1])};
}

void TiedChoice::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  CpuCall call(stream());
  const cpu::Head head = head_of(call, inputs, 1, options_);
  const cpu::FloatRows h = call.rows(inputs[0]);
  const auto* ids = call.contiguous<int32_t>(inputs[4]);
  auto* chosen = call.output<int32_t>(outputs[0]);
  auto* log_probs = call.output<float>(outputs[1]);
  const cpu::ProductOptions options = cpu_options();
  call.run([=] { cpu::tied_choice(head, h, ids, chosen, log_probs, options); });
}

void TiedChoice::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  need_cpu_stream("tied_choice");
}

std::pair<std::vector<mx::array>, std::vector<int>>
TiedChoice::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front("tied_choice", inputs, axes, 1, stream());
  return {make_choice(stream(), options_, std::move(moved)), {0, 0}};
}

bool TiedChoice::is_equivalent(const mx::Primitive& other) const {
  return options_ == static_cast<const TiedChoice&>(other).options_;
}

std::vector<mx::Shape> TiedChoice::output_shapes(const std::vector<mx::array>& inputs) {
  const mx::Shape shape = without_last(inputs[0].shape());
  return {shape, shape};
}

}  // namespace gemma_surgery::ops
