// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Which keys of a tile the kTileLanes queries of a block see: by position and image as ranges of
// keys per lane, by a boolean mask as flags.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/tile_product.h"

namespace gemma_surgery::cpu::GS_ISA {

struct LaneRanges {
  Ints first[kTileVectors];
  Ints last[kTileVectors];
  Ints reach[kTileVectors];
  Ints image[kTileVectors];  // -1 for text, so that it equals the image of no key
};

// What a block of queries sees of one tile of keys.
struct TileView {
  int64_t begin;  // first key
  int64_t count;
  bool whole;  // every query sees every key
  const LaneRanges* ranges;
  const uint8_t* allowed;  // [kKeyTile, lanes] or nullptr
  const Visibility* visible;
};

GS_INLINE Ints lane_indices(int32_t value) {
  return Ints{} + value;
}

GS_INLINE Ints visible_lanes(const TileView& tile, int64_t key, int v) {
  const int64_t position = tile.begin + key;
  const LaneRanges& ranges = *tile.ranges;
  const Ints at = lane_indices((int32_t)position);
  Ints seen = at < ranges.last[v];
  if (tile.visible->image_blocks != nullptr && position >= tile.visible->image_start) {
    const int32_t image = tile.visible->image_blocks[position - tile.visible->image_start];
    seen |= (lane_indices(image) == ranges.image[v]) & (at < ranges.reach[v]);
  }
  seen &= at >= ranges.first[v];
  if (tile.allowed != nullptr) {
    const uint8_t* flags = tile.allowed + key * kTileLanes + v * kWidth;
    seen &= (Ints)widen_bytes(flags) != lane_indices(0);
  }
  return seen;
}

struct Span {
  int64_t begin;
  int64_t end;
};

// The keys that any of the queries sees, and those that all see by their position alone.
static Span seen_by_any(const Visibility& visible, int64_t begin, int64_t count) {
  Span span = {INT64_MAX, 0};
  for (int64_t t = begin; t < begin + count; ++t) {
    span.begin = visible.first[t] < span.begin ? visible.first[t] : span.begin;
    span.end = visible.reach[t] > span.end ? visible.reach[t] : span.end;
  }
  return span;
}

static Span seen_by_all(const Visibility& visible, int64_t begin, int64_t count) {
  Span span = {0, INT64_MAX};
  for (int64_t t = begin; t < begin + count; ++t) {
    span.begin = visible.first[t] > span.begin ? visible.first[t] : span.begin;
    span.end = visible.last[t] < span.end ? visible.last[t] : span.end;
  }
  return span;
}

static LaneRanges lane_ranges(const Visibility& visible, int64_t begin, int64_t count) {
  LaneRanges ranges = {};
  for (int64_t t = 0; t < count; ++t) {
    const int64_t v = t / kWidth;
    const int64_t lane = t % kWidth;
    const int64_t token = begin + t;
    ranges.first[v][lane] = visible.first[token];
    ranges.last[v][lane] = visible.last[token];
    ranges.reach[v][lane] = visible.reach[token];
    const int32_t image = visible.image_blocks != nullptr ? visible.image_blocks[token] : 0;
    ranges.image[v][lane] = image > 0 ? image : -1;
  }
  return ranges;
}

// Flags [keys, lanes] of a boolean mask; returns whether there is any, and in `all` no gap.
static bool read_flags(
    const Visibility& visible,
    int64_t head,
    int64_t begin,
    int64_t count,
    int64_t first_key,
    int64_t keys,
    uint8_t* flags,
    bool* all) {
  int64_t set = 0;
  __builtin_memset(flags, 0, (size_t)(keys * kTileLanes));
  for (int64_t t = 0; t < count; ++t) {
    const uint8_t* row = visible.allowed + head * visible.head_stride +
                         (begin + t) * visible.query_stride + first_key * visible.key_stride;
    for (int64_t key = 0; key < keys; ++key) {
      const uint8_t flag = row[key * visible.key_stride] != 0;
      flags[key * kTileLanes + t] = flag;
      set += flag;
    }
  }
  *all = set == keys * count;
  return set > 0;
}

}  // namespace gemma_surgery::cpu::GS_ISA
