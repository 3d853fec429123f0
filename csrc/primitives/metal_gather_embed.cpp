// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// gather_embed on the GPU: one dispatch of metal/gather_embed.metal.

#include "primitives/gather_embed.h"
#include "primitives/metal_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr int kColumnsPerThread = 16;
constexpr int kThreads = 32;

// As in the kernel.
struct EmbedShape {
  int32_t rows;
  int32_t cols;
  int32_t map_size;
  float factor;
};

}  // namespace

void GatherEmbed::eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) {
  MetalCall call(stream());
  call.allocate(out);
  if (out.size() == 0) {
    return;
  }
  const bool mapped = inputs.size() == 5;
  const mx::array ids = call.contiguous(inputs[0]);
  const mx::array weight = call.contiguous(inputs[1]);
  const mx::array scales = call.contiguous(inputs[2]);
  const mx::array biases = call.contiguous(inputs[3]);
  const mx::array map = mapped ? call.contiguous(inputs[4]) : ids;
  const EmbedShape shape = {weight.shape(0), out.shape(-1), mapped ? map.shape(0) : 0, scale_};
  call.use(
      "gather_embed",
      "gather_embed",
      metal_types(scales.dtype(), scales.dtype(), dtype_),
      {{packing_.bits}, {packing_.group_size}, flag(mapped)});
  call.input(ids, 0);
  call.input(weight, 1);
  call.input(scales, 2);
  call.input(biases, 3);
  call.input(map, 4);
  call.output(out, 5);
  call.parameter(shape, 6);
  call.dispatch(
      groups_for(shape.cols, kColumnsPerThread * kThreads),
      static_cast<int64_t>(ids.size()),
      kThreads);
}

}  // namespace gemma_surgery::ops
