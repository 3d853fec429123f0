// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The head on the GPU: kernels of metal/tied_logits.metal, tied_topk.metal and
// tied_logprob.metal, over tiles of rows of h that bound the work of one dispatch. The first
// is quantized_linear too.

#include <algorithm>

#include "primitives/metal_call.h"
#include "primitives/quantized_linear.h"
#include "primitives/tied_head.h"

namespace gemma_surgery::ops {

namespace {

// As in the kernels.
constexpr int kRowsPerGroup = 8;
constexpr int kLogitThreads = 64;
constexpr int kSeveral = 4;
constexpr int kBlock = 256;
constexpr int kBlockThreads = 256;
constexpr int kMergedKeys = 1024;
constexpr int kMostChoices = 256;
constexpr int kWriteThreads = 32;

struct HeadShape {
  int32_t rows;
  int32_t cols;
  int32_t count;
  float softcap;
};

// The arrays of a head, contiguous, and the sizes that follow from them.
struct GpuHead {
  GpuHead(
      MetalCall& call,
      const std::vector<mx::array>& inputs,
      size_t first,
      const HeadOptions& head_options)
      : h(call.contiguous(inputs[0])),
        weight(call.contiguous(inputs[first])),
        scales(call.contiguous(inputs[first + 1])),
        biases(call.contiguous(inputs[first + 2])),
        options(head_options),
        rows(weight.shape(0)),
        cols(h.shape(-1)),
        count(static_cast<int64_t>(h.size()) / cols) {}

  // Rows of h in one dispatch, whole fours: bounded work, at most `most`.
  int64_t tile(int64_t most) const {
    const int64_t bounded = kMostProducts / std::max<int64_t>(int64_t(rows) * cols, 1);
    const int64_t tile = std::min({bounded, most, count});
    return std::max<int64_t>(tile < kSeveral ? tile : tile / kSeveral * kSeveral, 1);
  }

  MetalConstants constants(int64_t tile_count) const {
    return {{options.packing.bits}, {options.packing.group_size}, flag(tile_count == 1)};
  }

  MetalTypes types(mx::Dtype out) const {
    return metal_types(h.dtype(), scales.dtype(), out);
  }

  HeadShape shape(int64_t tile_count) const {
    return {rows, cols, static_cast<int32_t>(tile_count), options.softcap};
  }

  // Buffers 0 to 3 of every kernel.
  void bind(MetalCall& call, int64_t first) const {
    call.input(h, 0, first * cols * static_cast<int64_t>(h.itemsize()));
    call.input(weight, 1);
    call.input(scales, 2);
    call.input(biases, 3);
  }

  mx::array h;
  mx::array weight;
  mx::array scales;
  mx::array biases;
  HeadOptions options;
  int32_t rows;
  int32_t cols;
  int64_t count;
};

int64_t vector_groups(int64_t count) {
  return count == 1 ? 1 : groups_for(count, kSeveral);
}

int64_t bytes_at(const mx::array& x, int64_t element) {
  return element * static_cast<int64_t>(x.itemsize());
}

// The candidates of one tile, merged until one list of k is left; returns that list.
const mx::array& merge_candidates(
    MetalCall& call,
    const GpuHead& head,
    const MetalConstants& constants,
    int64_t tile_count,
    int64_t length,
    int k,
    std::vector<mx::array>& levels) {
  size_t level = 0;
  while (length > k) {
    const int64_t chunks = groups_for(length, kMergedKeys);
    call.use("tied_topk", "topk_merge", head.types(mx::float32), constants);
    call.input(levels[level], 0);
    call.output(levels[level + 1], 1);
    call.parameter(static_cast<int32_t>(length), 2);
    call.dispatch(chunks, tile_count, kBlockThreads);
    length = chunks * k;
    ++level;
  }
  return levels[level];
}

// Room for the candidates of every level.
std::vector<mx::array> candidate_levels(MetalCall& call, int64_t tile, int64_t length, int k) {
  std::vector<mx::array> levels;
  const auto add = [&] {
    levels.push_back(
        call.temporary({static_cast<int>(tile), static_cast<int>(length)}, mx::uint64));
  };
  add();
  while (length > k) {
    length = groups_for(length, kMergedKeys) * k;
    add();
  }
  return levels;
}

void write_products(
    MetalCall& call,
    const std::vector<mx::array>& inputs,
    const HeadOptions& options,
    mx::array& out) {
  call.allocate(out);
  if (out.size() == 0) {
    return;
  }
  const GpuHead head(call, inputs, 1, options);
  const bool biased = inputs.size() == 5;
  const mx::array bias = biased ? call.contiguous(inputs[4]) : head.weight;
  const int64_t tile = head.tile(head.count);
  for (int64_t first = 0; first < head.count; first += tile) {
    const int64_t count = std::min(tile, head.count - first);
    MetalConstants constants = head.constants(count);
    constants.push_back(flag(biased));
    call.use("tied_logits", "tied_logits", head.types(out.dtype()), constants);
    head.bind(call, first);
    call.output(out, 4, bytes_at(out, first * head.rows));
    call.parameter(head.shape(count), 5);
    call.input(bias, 6);
    call.dispatch(vector_groups(count), groups_for(head.rows, kRowsPerGroup), kLogitThreads);
  }
}

}  // namespace

void TiedLogits::eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) {
  MetalCall call(stream());
  write_products(call, inputs, options_, out);
}

void QuantizedLinear::eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) {
  MetalCall call(stream());
  write_products(call, inputs, {packing_, 0.0f}, out);
}

void TiedTopk::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  if (k_ > kMostChoices) {
    fail(
        "tied_topk",
        "need k of at most " + std::to_string(kMostChoices) + " on a GPU stream, got " +
            std::to_string(k_));
  }
  MetalCall call(stream());
  mx::array& values = outputs[0];
  mx::array& ids = outputs[1];
  call.allocate(values);
  call.allocate(ids);
  if (values.size() == 0) {
    return;
  }
  const GpuHead head(call, inputs, 1, options_);
  const bool mapped = inputs.size() == 5;
  const mx::array map = mapped ? call.contiguous(inputs[4]) : head.weight;
  const int64_t blocks = groups_for(head.rows, kBlock);
  const int64_t length = blocks * std::min(k_, kBlock);
  const int64_t tile = head.tile(std::max<int64_t>(kMostTemporaryBytes / (length * 8), 1));
  std::vector<mx::array> levels = candidate_levels(call, tile, length, k_);
  for (int64_t first = 0; first < head.count; first += tile) {
    const int64_t count = std::min(tile, head.count - first);
    MetalConstants constants = head.constants(count);
    constants.push_back({k_});
    constants.push_back(flag(mapped));
    call.use("tied_topk", "topk_blocks", head.types(mx::float32), constants);
    head.bind(call, first);
    call.output(levels[0], 4);
    call.parameter(head.shape(count), 5);
    call.dispatch(vector_groups(count), blocks, kBlockThreads);
    const mx::array& merged = merge_candidates(call, head, constants, count, length, k_, levels);
    call.use("tied_topk", "topk_write", head.types(mx::float32), constants);
    call.input(merged, 0);
    call.input(map, 1);
    call.output(values, 2, bytes_at(values, first * k_));
    call.output(ids, 3, bytes_at(ids, first * k_));
    call.parameter(static_cast<int32_t>(count * k_), 4);
    call.dispatch(groups_for(count * k_, kWriteThreads), 1, kWriteThreads);
  }
}

void TiedLogprob::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  MetalCall call(stream());
  mx::array& log_probs = outputs[0];
  mx::array& log_sums = outputs[1];
  call.allocate(log_probs);
  call.allocate(log_sums);
  if (log_probs.size() == 0) {
    return;
  }
  const GpuHead head(call, inputs, 2, options_);
  const mx::array targets = call.contiguous(inputs[1]);
  const int64_t blocks = groups_for(head.rows, kBlock);
  const int64_t tile = head.tile(std::max<int64_t>(kMostTemporaryBytes / (blocks * 8), 1));
  mx::array partials =
      call.temporary({static_cast<int>(tile), static_cast<int>(blocks), 2}, mx::float32);
  mx::array target_logits = call.temporary({static_cast<int>(tile)}, mx::float32);
  for (int64_t first = 0; first < head.count; first += tile) {
    const int64_t count = std::min(tile, head.count - first);
    const MetalConstants constants = head.constants(count);
    call.use("tied_logprob", "logprob_blocks", head.types(mx::float32), constants);
    head.bind(call, first);
    call.input(targets, 4, bytes_at(targets, first));
    call.output(partials, 5);
    call.output(target_logits, 6);
    call.parameter(head.shape(count), 7);
    call.dispatch(vector_groups(count), blocks, kBlockThreads);
    call.use("tied_logprob", "logprob_combine", head.types(mx::float32), constants);
    call.input(partials, 0);
    call.input(target_logits, 1);
    call.input(targets, 2, bytes_at(targets, first));
    call.output(log_probs, 3, bytes_at(log_probs, first));
    call.output(log_sums, 4, bytes_at(log_sums, first));
    call.parameter(static_cast<int32_t>(blocks), 5);
    call.parameter(head.rows, 6);
    call.dispatch(count, 1, 32);
  }
}

}  // namespace gemma_surgery::ops
