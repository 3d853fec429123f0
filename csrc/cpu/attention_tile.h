// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention for many queries: kTileLanes queries lie along the lanes of vectors, so that running
// maxima, sums and rescaling need no sums across lanes. Tiles of kKeyTile keys and values are
// turned to float32 once for all query blocks of the task; scores, weights and the queries'
// sums are [*, kTileLanes] arrays that stay in the first two cache levels.

#pragma once

#include "cpu/attention_mask.h"
#include "cpu/float_functions.h"
#include "cpu/tile_product.h"

namespace gemma_surgery::cpu::GS_ISA {

// Floats between rows of float32 keys: constant, so that addresses need no arithmetic, and an
// odd number of cache lines, so that rows do not collide.
constexpr int kNarrowRow = 144;
constexpr int kWideRow = 528;
static_assert(kWideRow > kMaxHeadDim && kKeyTile % 8 == 0);

// Blocks of queries of one head that a task may hold.
constexpr int64_t kMaxQueryBlocks = 64;

static int64_t query_blocks(int64_t count) {
  return (count + kTileLanes - 1) / kTileLanes;
}

static int64_t attention_scratch(int64_t heads, int64_t count, int64_t dim) {
  const int64_t blocks = heads * query_blocks(count);
  return 2 * kKeyTile * kWideRow + kKeyTile * kTileLanes + blocks * kTileLanes * (2 * dim + 2) +
         4 * kTileLanes + kWideRow;
}

// kTileLanes queries of one head.
struct QueryBlock {
  float* q;        // [dim, lanes], times the factor
  float* sums;     // [dim, lanes] weighted sums of values
  float* maximum;  // [lanes]
  float* total;    // [lanes] sums of weights
};

// Scores [count, lanes] of a tile and, in `maximum`, the running maximum with them.
template <int kRowStep>
static void tile_scores(
    const float* keys,
    const float* q,
    int64_t dim,
    const TileView& tile,
    float* scores,
    Floats (&maximum_of)[kTileVectors]) {
  for (int64_t key = 0; key < tile.count; key += kTileRows) {
    Floats sums[kTileRows][kTileVectors];
    clear(sums);
    tile_product<kTileRows, kRowStep, 1>(keys + key * kRowStep, q, dim, sums);
    const bool whole = tile.whole && key + kTileRows <= tile.count;
    for (int i = 0; i < kTileRows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) {
        Floats score = sums[i][v];
        if (!whole) {
          if (key + i >= tile.count) {
            continue;
          }
          score = select(visible_lanes(tile, key + i, v), score, broadcast(-__builtin_inff()));
        }
        maximum_of[v] = maximum(maximum_of[v], score);
        store(scores + (key + i) * kTileLanes + v * kWidth, score);
      }
    }
  }
}

// Turns scores into weights 2^(score - maximum) and adds them to the totals.
static void weigh(
    float* scores,
    int64_t count,
    const Floats (&top)[kTileVectors],
    Floats (&totals)[kTileVectors]) {
  for (int64_t key = 0; key < count; ++key) {
    for (int v = 0; v < kTileVectors; ++v) {
      float* at = scores + key * kTileLanes + v * kWidth;
      const Floats weight = exp2_of_negative(load<Floats>(at) - top[v]);
      store(at, weight);
      totals[v] += weight;
    }
  }
}

template <int kRowStep>
static void add_values(
    const float* values,
    const float* weights,
    int64_t count,
    int64_t dim,
    const Floats (&rescale)[kTileVectors],
    float* sums) {
  for (int64_t d = 0; d < dim; d += kTileRows) {
    Floats block[kTileRows][kTileVectors];
    float* at = sums + d * kTileLanes;
    for (int i = 0; i < kTileRows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) {
        block[i][v] = load<Floats>(at + i * kTileLanes + v * kWidth) * rescale[v];
      }
    }
    tile_product<kTileRows, 1, kRowStep>(values + d, weights, count, block);
    for (int i = 0; i < kTileRows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) {
        store(at + i * kTileLanes + v * kWidth, block[i][v]);
      }
    }
  }
}

template <int kRowStep>
static void add_tile(
    const float* keys,
    const float* values,
    int64_t dim,
    const TileView& tile,
    float* scores,
    const QueryBlock& block) {
  Floats top[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) {
    top[v] = load<Floats>(block.maximum + v * kWidth);
  }
  tile_scores<kRowStep>(keys, block.q, dim, tile, scores, top);
  Floats rescale[kTileVectors];
  Floats totals[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) {
    rescale[v] = exp2_of_negative(load<Floats>(block.maximum + v * kWidth) - top[v]);
    totals[v] = load<Floats>(block.total + v * kWidth) * rescale[v];
    store(block.maximum + v * kWidth, top[v]);
  }
  weigh(scores, tile.count, top, totals);
  for (int v = 0; v < kTileVectors; ++v) {
    store(block.total + v * kWidth, totals[v]);
  }
  add_values<kRowStep>(values, scores, tile.count, dim, rescale, block.sums);
}

static void start_block(
    const AttentionHeads& heads,
    int64_t head,
    int64_t begin,
    int64_t count,
    const QueryBlock& block,
    float* row) {
  fill_zeros(block.q, heads.dim * kTileLanes);
  fill_zeros(block.sums, heads.dim * kTileLanes);
  for (int v = 0; v < kTileVectors; ++v) {
    store(block.maximum + v * kWidth, broadcast(kLowest));
    store(block.total + v * kWidth, Floats{});
  }
  for (int64_t t = 0; t < count; ++t) {
    read_floats(
        heads.q.dtype,
        heads.q.data + head * heads.q_head_stride + (begin + t) * heads.q.stride,
        heads.dim,
        row);
    for (int64_t d = 0; d < heads.dim; ++d) {
      block.q[d * kTileLanes + t] = row[d] * heads.factor;
    }
  }
}

static void finish_block(
    const AttentionHeads& heads,
    int64_t head,
    int64_t begin,
    int64_t count,
    const QueryBlock& block,
    float* row) {
  for (int v = 0; v < kTileVectors; ++v) {
    const Floats total = load<Floats>(block.total + v * kWidth);
    const Floats share = select(total == Floats{}, Floats{}, broadcast(1.0f) / total);
    for (int64_t d = 0; d < heads.dim; ++d) {
      float* at = block.sums + d * kTileLanes + v * kWidth;
      store(at, load<Floats>(at) * share);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < heads.dim; ++d) {
      row[d] = block.sums[d * kTileLanes + t];
    }
    uint8_t* to = heads.out.data + head * heads.out_head_stride + (begin + t) * heads.out.stride;
    write_floats(heads.out.dtype, row, heads.dim, to);
  }
}

template <int kRowStep>
static void
attention_rows(const AttentionHeads& heads, int64_t begin, int64_t count, float* scratch) {
  const int64_t dim = heads.dim;
  const Visibility& visible = heads.visible;
  float* const keys = scratch;
  float* const values = keys + kKeyTile * kRowStep;
  float* const scores = values + kKeyTile * kRowStep;
  float* const row = scores + kKeyTile * kTileLanes;
  float* const blocks_at = row + kRowStep;
  const int64_t blocks = query_blocks(count);
  auto block_of = [&](int64_t head, int64_t b) {
    float* at = blocks_at + (head * blocks + b) * kTileLanes * (2 * dim + 2);
    const int64_t size = dim * kTileLanes;
    return QueryBlock{at, at + size, at + 2 * size, at + 2 * size + kTileLanes};
  };
  auto size_of = [&](int64_t b) {
    const int64_t left = count - b * kTileLanes;
    return left < kTileLanes ? left : (int64_t)kTileLanes;
  };
  Span any[kMaxQueryBlocks];
  Span all[kMaxQueryBlocks];
  for (int64_t b = 0; b < blocks; ++b) {
    any[b] = seen_by_any(visible, begin + b * kTileLanes, size_of(b));
    all[b] = seen_by_all(visible, begin + b * kTileLanes, size_of(b));
    for (int64_t head = 0; head < heads.heads; ++head) {
      start_block(heads, head, begin + b * kTileLanes, size_of(b), block_of(head, b), row);
    }
  }
  const Span span = seen_by_any(visible, begin, count);
  // Tiles start at multiples of their size: which queries share a task changes no result.
  for (int64_t key = span.begin / kKeyTile * kKeyTile; key < span.end; key += kKeyTile) {
    const int64_t size = span.end - key < kKeyTile ? span.end - key : kKeyTile;
    for (int64_t j = 0; j < size; ++j) {
      read_row_ahead<kKeyTile>(heads.k, key + j, span.end, dim, keys + j * kRowStep);
      read_row_ahead<kKeyTile>(heads.v, key + j, span.end, dim, values + j * kRowStep);
    }
    for (int64_t j = size; j < (size + 7) / 8 * 8; ++j) {
      fill_zeros(keys + j * kRowStep, dim);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t token = begin + b * kTileLanes;
      if (key >= any[b].end || key + size <= any[b].begin) {
        continue;
      }
      const bool inside = key >= all[b].begin && key + size <= all[b].end;
      LaneRanges ranges;
      if (!inside || visible.allowed != nullptr || size % kTileRows != 0) {
        ranges = lane_ranges(visible, token, size_of(b));
      }
      for (int64_t head = 0; head < heads.heads; ++head) {
        TileView tile = {key, size, inside, &ranges, nullptr, &visible};
        uint8_t flags[kKeyTile * kTileLanes];
        if (visible.allowed != nullptr) {
          bool all_set = false;
          if (!read_flags(visible, head, token, size_of(b), key, size, flags, &all_set)) {
            continue;
          }
          tile.allowed = flags;
          tile.whole = inside && all_set;
        }
        add_tile<kRowStep>(keys, values, dim, tile, scores, block_of(head, b));
      }
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t head = 0; head < heads.heads; ++head) {
      finish_block(heads, head, begin + b * kTileLanes, size_of(b), block_of(head, b), row);
    }
  }
}

static void
attention_tile(const AttentionHeads& heads, int64_t begin, int64_t count, float* scratch) {
  if (heads.dim <= kNarrowRow - 16) {
    attention_rows<kNarrowRow>(heads, begin, count, scratch);
  } else {
    attention_rows<kWideRow>(heads, begin, count, scratch);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
