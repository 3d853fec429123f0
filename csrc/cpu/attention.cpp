// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/buffers.h"
#include "cpu/checks.h"
#include "cpu/float_functions.h"
#include "cpu/sizes.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "attention";
constexpr double kLog2E = 1.4426950408889634;

// Floats of queries and sums in one task of many queries: about half of a second-level cache.
constexpr int64_t kTaskFloats = 160 * 1024;

// Tokens of one task of many queries, whatever the size of heads.
constexpr int64_t kMostTaskTokens = 576;

// Floats of block sums at a time with few queries, unless one head needs more.
constexpr int64_t kPassFloats = 2 * 1024 * 1024;

void check(const AttentionShape& shape, const AttentionMask& mask) {
  auto number = [](int64_t value) { return std::to_string(value); };
  if (shape.dim < 8 || shape.dim > kMaxHeadDim || shape.dim % 8 != 0) {
    fail(kWhere, "need a head dimension from 8 to 512 in steps of 8, got " + number(shape.dim));
  }
  if (shape.batch < 0 || shape.queries < 0 || shape.keys < 0 || shape.heads < 0 ||
      shape.keys > std::numeric_limits<int32_t>::max() / 2) {
    fail(
        kWhere,
        "need sizes from 0 to 2^30, got B=" + number(shape.batch) + ", H=" + number(shape.heads) +
            ", T=" + number(shape.queries) + ", S=" + number(shape.keys));
  }
  if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0) {
    fail(
        kWhere,
        "need a number of query heads that is a multiple of the key heads, got " +
            number(shape.heads) + " and " + number(shape.kv_heads));
  }
  if (mask.kind == AttentionMask::Kind::Causal && shape.queries > shape.keys) {
    fail(
        kWhere,
        "need at least as many keys as queries for a causal mask, got " + number(shape.keys) +
            " and " + number(shape.queries));
  }
  if (mask.window < 0) {
    fail(kWhere, "need a window of at least 0 keys, got " + number(mask.window));
  }
  if (mask.kind == AttentionMask::Kind::Boolean && mask.allowed == nullptr) {
    fail(kWhere, "need flags for a boolean mask, got none");
  }
}

// first, last and reach of `Visibility` for every token.
struct Ranges {
  std::vector<int32_t> first;
  std::vector<int32_t> last;
  std::vector<int32_t> reach;
};

Ranges key_ranges(const AttentionShape& shape, const AttentionMask& mask) {
  const size_t tokens = static_cast<size_t>(shape.queries);
  const auto keys = static_cast<int32_t>(shape.keys);
  Ranges ranges{
      std::vector<int32_t>(tokens, 0),
      std::vector<int32_t>(tokens, keys),
      std::vector<int32_t>(tokens, keys)};
  if (mask.kind != AttentionMask::Kind::Causal) {
    return ranges;
  }
  const int64_t past = shape.keys - shape.queries;
  for (size_t t = 0; t < tokens; ++t) {
    const int64_t position = past + static_cast<int64_t>(t);
    const int64_t first = mask.window > 0 ? position + 1 - mask.window : 0;
    ranges.first[t] = static_cast<int32_t>(std::max<int64_t>(first, 0));
    ranges.last[t] = static_cast<int32_t>(position + 1);
    ranges.reach[t] = ranges.last[t];
  }
  if (mask.image_blocks == nullptr) {
    return ranges;
  }
  // The last token of each image; an image lies in one piece, other layouts are found too.
  std::vector<std::pair<int32_t, int32_t>> ends;
  for (size_t t = tokens; t-- > 0;) {
    const int32_t image = mask.image_blocks[t];
    if (image <= 0) {
      continue;
    }
    auto found = std::find_if(
        ends.rbegin(), ends.rend(), [image](const auto& end) { return end.first == image; });
    if (found == ends.rend()) {
      ends.emplace_back(image, ranges.last[t]);
    } else {
      ranges.reach[t] = found->second;
    }
  }
  return ranges;
}

struct Call {
  const AttentionShape& shape;
  const HeadsView& q;
  const HeadsView& k;
  const HeadsView& v;
  float scale;
  const AttentionMask& mask;
  const MutableHeadsView& out;
  const FloatKernels& kernels;
  Ranges ranges;
};

Rows rows_of(const HeadsView& view, int64_t batch, int64_t head) {
  const int64_t bytes = bytes_of(view.dtype);
  const int64_t offset = batch * view.batch_stride + head * view.head_stride;
  return {view.data + offset * bytes, view.dtype, view.token_stride * bytes};
}

// The query heads of key head `pair` % K of batch `pair` / K.
AttentionHeads heads_of(const Call& call, int64_t pair) {
  const int64_t batch = pair / call.shape.kv_heads;
  const int64_t kv_head = pair % call.shape.kv_heads;
  const int64_t group = call.shape.heads / call.shape.kv_heads;
  const int64_t out_bytes = bytes_of(call.out.dtype);
  const int64_t out_offset = batch * call.out.batch_stride + kv_head * group * call.out.head_stride;
  AttentionHeads heads;
  heads.q = rows_of(call.q, batch, kv_head * group);
  heads.k = rows_of(call.k, batch, kv_head);
  heads.v = rows_of(call.v, batch, kv_head);
  heads.out = {
      call.out.data + out_offset * out_bytes, call.out.dtype, call.out.token_stride * out_bytes};
  heads.q_head_stride = call.q.head_stride * bytes_of(call.q.dtype);
  heads.out_head_stride = call.out.head_stride * out_bytes;
  heads.heads = group;
  heads.dim = call.shape.dim;
  heads.factor = static_cast<float>(static_cast<double>(call.scale) * kLog2E);
  const AttentionMask& mask = call.mask;
  const bool causal = mask.kind == AttentionMask::Kind::Causal;
  const bool boolean = mask.kind == AttentionMask::Kind::Boolean;
  heads.visible.first = call.ranges.first.data();
  heads.visible.last = call.ranges.last.data();
  heads.visible.reach = call.ranges.reach.data();
  heads.visible.image_blocks = causal ? mask.image_blocks : nullptr;
  heads.visible.image_start = call.shape.keys - call.shape.queries;
  heads.visible.allowed =
      boolean ? mask.allowed + batch * mask.batch_stride + kv_head * group * mask.head_stride
              : nullptr;
  heads.visible.head_stride = mask.head_stride;
  heads.visible.query_stride = mask.query_stride;
  heads.visible.key_stride = mask.key_stride;
  return heads;
}

void attend_many(const Call& call, int threads) {
  const AttentionShape& shape = call.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t lanes = call.kernels.lanes;
  const int64_t pairs = shape.batch * shape.kv_heads;
  const int64_t fitting = kTaskFloats / (2 * shape.dim * group);
  // Four tasks per thread keep all of them busy to the end.
  const int64_t workers = threads > 0 ? threads : available_threads();
  const int64_t fair = pairs * shape.queries / (4 * workers);
  const int64_t wanted = std::min(fitting, fair);
  const int64_t tokens = std::clamp(wanted / lanes * lanes, lanes, kMostTaskTokens);
  const int64_t tiles = divided_up(shape.queries, tokens);
  parallel_tasks(pairs * tiles, threads, [&](int64_t task) {
    // Later queries of a causal mask see more keys: they come first, so that no long task is
    // left at the end.
    const int64_t tile = tiles - 1 - task % tiles;
    const int64_t begin = tile * tokens;
    const int64_t count = std::min(tokens, shape.queries - begin);
    const int64_t needed = call.kernels.attention_scratch(group, count, shape.dim);
    float* scratch = thread_buffer<float>(Purpose::Tile, needed);
    call.kernels.attention_tile(heads_of(call, task / tiles), begin, count, scratch);
  });
}

void attend_few(const Call& call, int threads) {
  const AttentionShape& shape = call.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t rows = group * shape.queries;
  int64_t blocks = 0;
  for (size_t t = 0; t < call.ranges.first.size(); ++t) {
    blocks = std::max(blocks, divided_up(call.ranges.reach[t] - call.ranges.first[t], kKeyBlock));
  }
  const int64_t stride = kLanes + divided_up(shape.dim, kLanes) * kLanes;
  const int64_t pair_floats = rows * blocks * stride;
  const int64_t pairs = shape.batch * shape.kv_heads;
  const int64_t pass = std::clamp<int64_t>(
      kPassFloats / std::max<int64_t>(pair_floats, 1), 1, std::max<int64_t>(pairs, 1));
  float* const sums = thread_buffer<float>(Purpose::Operand, std::min(pass, pairs) * pair_floats);
  auto merge = [&](int64_t pair, const float* from) {
    const AttentionHeads heads = heads_of(call, pair);
    for (int64_t row = 0; row < rows; ++row) {
      uint8_t* to = heads.out.data + row / shape.queries * heads.out_head_stride +
                    row % shape.queries * heads.out.stride;
      call.kernels.attention_merge(
          from + row * blocks * stride, blocks, stride, shape.dim, heads.out.dtype, to);
    }
  };
  for (int64_t first = 0; first < pairs; first += pass) {
    const int64_t count = std::min(pass, pairs - first);
    parallel_tasks(count * blocks, threads, [&](int64_t task) {
      const int64_t pair = task / blocks;
      const int64_t needed = call.kernels.attention_block_scratch(group, shape.dim);
      const BlockSums out = {sums + pair * pair_floats, stride, blocks};
      call.kernels.attention_block(
          heads_of(call, first + pair),
          shape.queries,
          task % blocks,
          out,
          thread_buffer<float>(Purpose::Tile, needed));
    });
    parallel_tasks(count, count * pair_floats > (1 << 18) ? threads : 1, [&](int64_t pair) {
      merge(first + pair, sums + pair * pair_floats);
    });
  }
}

}  // namespace

void attention(
    const AttentionShape& shape,
    const HeadsView& q,
    const HeadsView& k,
    const HeadsView& v,
    float scale,
    const AttentionMask& mask,
    const MutableHeadsView& out,
    const FloatOptions& options) {
  check(shape, mask);
  if (shape.batch == 0 || shape.heads == 0 || shape.queries == 0) {
    return;
  }
  const Call call{
      shape, q, k, v, scale, mask, out, float_kernels(options.kernels), key_ranges(shape, mask)};
  if (shape.queries <= kFewQueries) {
    attend_few(call, options.threads);
  } else {
    attend_many(call, options.threads);
  }
}

}  // namespace gemma_surgery::cpu
