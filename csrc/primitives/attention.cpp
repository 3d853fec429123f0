// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/attention.h"

#include "cpu/attention.h"
#include "cpu/row_ops.h"
#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr const char* kAttention = "attention";
constexpr const char* kRope = "rope";

void check_heads(const char* where, const char* name, const mx::array& x) {
  check_float(where, name, x.dtype());
  if (x.ndim() != 4) {
    fail(
        where,
        std::string("need [batch, heads, tokens, dim] for `") + name + "`, got " +
            shape_text(x.shape()));
  }
}

void check_shapes(const mx::array& q, const mx::array& k, const mx::array& v) {
  check_heads(kAttention, "q", q);
  check_heads(kAttention, "k", k);
  check_heads(kAttention, "v", v);
  if (k.shape() != v.shape()) {
    fail(
        kAttention,
        "need keys and values of one shape, got " + shape_text(k.shape()) + " and " +
            shape_text(v.shape()));
  }
  if (q.shape(0) != k.shape(0) || q.shape(3) != k.shape(3)) {
    fail(
        kAttention,
        "need one batch and head size for queries and keys, got " + shape_text(q.shape()) +
            " and " + shape_text(k.shape()));
  }
  if (k.shape(1) == 0 || q.shape(1) % k.shape(1) != 0) {
    fail(
        kAttention,
        "need query heads divisible by key heads, got " + std::to_string(q.shape(1)) + " and " +
            std::to_string(k.shape(1)));
  }
  const int dim = q.shape(3);
  if (dim < 8 || dim > 512 || dim % 8 != 0) {
    fail(
        kAttention,
        "need a head size divisible by 8 between 8 and 512, got " + std::to_string(dim));
  }
}

// The array of the mask in the form that eval_cpu reads, or the reason against it.
mx::array checked_mask(
    const mx::array& mask,
    const AttentionOptions& options,
    const mx::Shape& scores,
    mx::Stream stream) {
  if (options.mask == MaskKind::Causal) {
    if (mask.dtype() != mx::int32 || mask.shape() != mx::Shape{scores[2]}) {
      fail(
          kAttention,
          "need int32 [" + std::to_string(scores[2]) + "] for `image_blocks`, got " +
              dtype_text(mask.dtype()) + " " + shape_text(mask.shape()));
    }
    return mask;
  }
  const auto missing = static_cast<int>(scores.size()) - static_cast<int>(mask.ndim());
  bool fits = mask.dtype() == mx::bool_ && missing >= 0;
  for (int axis = 0; fits && axis < static_cast<int>(mask.ndim()); ++axis) {
    fits = mask.shape(axis) == 1 || mask.shape(axis) == scores[static_cast<size_t>(axis + missing)];
  }
  if (!fits) {
    fail(
        kAttention,
        "need a bool mask that broadcasts to " + shape_text(scores) + ", got " +
            dtype_text(mask.dtype()) + " " + shape_text(mask.shape()));
  }
  return mx::broadcast_to(mask, scores, stream);
}

cpu::HeadsView heads_view(CpuCall& call, const mx::array& x) {
  const bool in_place = x.strides()[3] == 1 || x.shape(3) == 1;
  if (in_place) {
    const auto& strides = x.strides();
    return {call.in_place(x), cpu_dtype(x.dtype()), strides[0], strides[1], strides[2]};
  }
  const int64_t token = x.shape(3);
  const int64_t head = token * x.shape(2);
  return {call.contiguous(x), cpu_dtype(x.dtype()), head * x.shape(1), head, token};
}

}  // namespace

mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const AttentionOptions& options,
    const std::optional<mx::array>& mask_array,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = cpu_stream(kAttention, stream_or_device);
  check_shapes(q, k, v);
  const mx::Shape scores = {q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
  if (options.mask == MaskKind::Causal && scores[2] > scores[3]) {
    fail(
        kAttention,
        "need at least as many keys as queries for a causal mask, got " +
            std::to_string(scores[3]) + " and " + std::to_string(scores[2]));
  }
  if (options.window < 0) {
    fail(kAttention, "need a positive window or none, got " + std::to_string(options.window));
  }
  std::vector<mx::array> inputs = {q, k, v};
  if (mask_array) {
    inputs.push_back(checked_mask(*mask_array, options, scores, stream));
  }
  return mx::array(
      q.shape(), q.dtype(), std::make_shared<Attention>(stream, options), std::move(inputs));
}

void Attention::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const mx::array& q = inputs[0];
  const mx::array& k = inputs[1];
  const cpu::AttentionShape shape = {
      q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3)};
  const cpu::HeadsView queries = heads_view(call, q);
  const cpu::HeadsView keys = heads_view(call, k);
  const cpu::HeadsView values = heads_view(call, inputs[2]);
  cpu::AttentionMask mask;
  mask.window = options_.window;
  if (options_.mask == MaskKind::Causal) {
    mask.kind = cpu::AttentionMask::Kind::Causal;
    mask.image_blocks = inputs.size() == 4 ? call.contiguous<int32_t>(inputs[3]) : nullptr;
  } else if (options_.mask == MaskKind::Boolean) {
    mask.kind = cpu::AttentionMask::Kind::Boolean;
    mask.allowed = call.in_place(inputs[3]);
    const auto& strides = inputs[3].strides();
    mask.batch_stride = strides[0];
    mask.head_stride = strides[1];
    mask.query_stride = strides[2];
    mask.key_stride = strides[3];
  }
  // [B, T, H, D] in memory: the output projection takes it without another copy.
  const int64_t token = shape.heads * shape.dim;
  const cpu::MutableHeadsView result = {
      call.output(out, {shape.queries * token, shape.dim, token, 1}),
      cpu_dtype(out.dtype()),
      shape.queries * token,
      shape.dim,
      token};
  const cpu::FloatOptions options = float_options();
  call.run([=, scale = options_.scale] {
    cpu::attention(shape, queries, keys, values, scale, mask, result, options);
  });
}

void Attention::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu_stream(kAttention);
}

bool Attention::is_equivalent(const mx::Primitive& other) const {
  return options_ == static_cast<const Attention&>(other).options_;
}

std::vector<mx::Shape> Attention::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

mx::array rope(
    const mx::array& x,
    const mx::array& periods,
    int offset,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = cpu_stream(kRope, stream_or_device);
  check_heads(kRope, "x", x);
  if (periods.dtype() != mx::float32 || periods.ndim() != 1 ||
      2 * static_cast<int64_t>(periods.shape(0)) > x.shape(3)) {
    fail(
        kRope,
        "need float32 periods for at most " + std::to_string(x.shape(3) / 2) + " pairs, got " +
            dtype_text(periods.dtype()) + " " + shape_text(periods.shape()));
  }
  if (offset < 0) {
    fail(kRope, "need an offset of at least 0, got " + std::to_string(offset));
  }
  return mx::array(x.shape(), x.dtype(), std::make_shared<Rope>(stream, offset), {x, periods});
}

void Rope::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const mx::array& x = inputs[0];
  const cpu::RopeShape shape = {
      x.shape(0), x.shape(1), x.shape(2), x.shape(3), 2 * static_cast<int64_t>(inputs[1].size())};
  const cpu::HeadsView from = heads_view(call, x);
  const auto* periods = call.contiguous<float>(inputs[1]);
  const int64_t head = shape.tokens * shape.dim;
  const cpu::MutableHeadsView to = {
      call.output(out), cpu_dtype(out.dtype()), shape.heads * head, head, shape.dim};
  const cpu::FloatOptions options = float_options();
  call.run([=, offset = offset_] { cpu::rope(shape, from, periods, offset, to, options); });
}

void Rope::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  need_cpu_stream(kRope);
}

bool Rope::is_equivalent(const mx::Primitive& other) const {
  return offset_ == static_cast<const Rope&>(other).offset_;
}

std::vector<mx::Shape> Rope::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

}  // namespace gemma_surgery::ops
