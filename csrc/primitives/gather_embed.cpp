// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/gather_embed.h"

#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr const char* kWhere = "gather_embed";

}  // namespace

mx::array gather_embed(
    const mx::array& ids,
    const std::optional<mx::array>& token_map,
    const AffineArrays& table,
    const Packing& packing,
    float scale,
    std::optional<mx::Dtype> dtype,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = mx::to_stream(stream_or_device);
  const int cols = affine_cols(kWhere, table, packing);
  const mx::Dtype out_dtype = dtype.value_or(table.scales.dtype());
  check_float(kWhere, "dtype", out_dtype);
  const int num_ids =
      token_map && token_map->ndim() == 1 ? token_map->shape(0) : table.weight.shape(0);
  check_known_indices(kWhere, "ids", ids, 0, num_ids - 1);
  std::vector<mx::array> inputs = {
      as_indices(kWhere, "ids", ids, stream), table.weight, table.scales, table.biases};
  if (token_map) {
    if (token_map->dtype() != mx::int32 || token_map->ndim() != 1) {
      fail(
          kWhere,
          "need int32 [ids] for `token_map`, got " + dtype_text(token_map->dtype()) + " " +
              shape_text(token_map->shape()));
    }
    inputs.push_back(*token_map);
  }
  mx::Shape shape = ids.shape();
  shape.push_back(cols);
  return mx::array(
      std::move(shape),
      out_dtype,
      std::make_shared<GatherEmbed>(stream, packing, scale, out_dtype),
      std::move(inputs));
}

void GatherEmbed::eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) {
  CpuCall call(stream());
  const cpu::AffineMatrix table = call.matrix(inputs, 1, packing_);
  const auto* ids = call.contiguous<int32_t>(inputs[0]);
  const bool mapped = inputs.size() == 5;
  const auto* map = mapped ? call.contiguous<int32_t>(inputs[4]) : nullptr;
  const int64_t map_size = mapped ? inputs[4].shape(0) : 0;
  const cpu::MutableFloatRows rows = call.output_rows(out);
  const auto count = static_cast<int64_t>(inputs[0].size());
  const cpu::ProductOptions options = cpu_options();
  call.run([=, scale = scale_] {
    cpu::gather_embed(table, ids, count, map, map_size, scale, rows, options);
  });
}

std::pair<std::vector<mx::array>, std::vector<int>>
GatherEmbed::vmap(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto moved = rows_in_front(kWhere, inputs, axes, 1, stream());
  mx::Shape shape = output_shapes(moved)[0];
  return {
      {mx::array(
          std::move(shape),
          dtype_,
          std::make_shared<GatherEmbed>(stream(), packing_, scale_, dtype_),
          std::move(moved))},
      {0}};
}

bool GatherEmbed::is_equivalent(const mx::Primitive& other) const {
  const auto& that = static_cast<const GatherEmbed&>(other);
  return packing_ == that.packing_ && scale_ == that.scale_ && dtype_ == that.dtype_;
}

std::vector<mx::Shape> GatherEmbed::output_shapes(const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.push_back(inputs[2].shape(1) * packing_.group_size);
  return {std::move(shape)};
}

}  // namespace gemma_surgery::ops
