// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// How `requantize` makes one target row, worked out once for all rows. A target row is a
// sequence of segments: groups that move whole between equal layouts are copied, the others
// are encoded from the decoded source columns that they need.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/encoding.h"
#include "cpu/matrix.h"

namespace gemma_surgery::cpu {

// Encoded segments are short enough to stay in the first-level cache until they are done.
inline constexpr int64_t kSegmentColumns = 2048;

// Target units [begin, end): groups of a quantized matrix, or the columns of a dense one.
struct Segment {
  int64_t begin;
  int64_t end;
  int64_t source;  // first source group to copy, -1: encode
  // Only for those that are encoded: the source columns [first, last) that they need,
  // whether these must be decoded first, and whether their order changes.
  int64_t first = 0;
  int64_t last = 0;
  bool decodes = true;
  bool gathers = false;
};

// Everything that is the same for all rows.
struct RowPlan {
  std::vector<Segment> segments;
  std::vector<int32_t> lookup;  // per target column, where to find it in the decoded columns
  std::vector<uint8_t> padded;  // per target group: holds a zero column
  int64_t unit = 1;             // columns per unit
  bool has_padding = false;
};

inline int64_t column_at(const Columns& columns, int64_t i) {
  return columns.indices ? columns.indices[i] : i;
}

// The source group that target group `g` copies whole, or -1.
inline int64_t whole_group(const Columns& columns, int64_t g, int64_t size) {
  const int64_t start = column_at(columns, g * size);
  if (start < 0 || start % size != 0) {
    return -1;
  }
  for (int64_t i = 1; columns.indices && i < size; ++i) {
    if (columns.indices[g * size + i] != start + i) {
      return -1;
    }
  }
  return start / size;
}

inline void add_segments(
    const Encoding& source,
    const Encoding& target,
    const Columns& columns,
    RowPlan& plan) {
  plan.unit = std::max<int64_t>(target.group_size, 1);
  const bool copies = target.mode != Mode::Dense && same_layout(source, target);
  for (int64_t unit = 0; unit < columns.count / plan.unit; ++unit) {
    const int64_t from = copies ? whole_group(columns, unit, plan.unit) : -1;
    if (!plan.segments.empty()) {
      Segment& previous = plan.segments.back();
      const int64_t size = previous.end - previous.begin;
      const int64_t next = previous.source < 0 ? -1 : previous.source + size;
      if (from == next && (from >= 0 || size * plan.unit < kSegmentColumns)) {
        ++previous.end;
        continue;
      }
    }
    plan.segments.push_back({unit, unit + 1, from});
  }
}

// Which whole groups of the source each segment needs.
inline void
add_ranges(const Encoding& source, int64_t cols, const Columns& columns, RowPlan& plan) {
  const int64_t group = std::max<int64_t>(source.group_size, 1);
  int64_t decoded = 0;
  int64_t first = cols;
  int64_t last = 0;
  for (Segment& segment : plan.segments) {
    if (segment.source >= 0) {
      continue;
    }
    segment.first = cols;
    for (int64_t i = segment.begin * plan.unit; i < segment.end * plan.unit; ++i) {
      const int64_t column = column_at(columns, i);
      if (column >= 0) {
        segment.first = std::min(segment.first, column / group * group);
        segment.last = std::max(segment.last, column / group * group + group);
      }
    }
    segment.first = std::min(segment.first, segment.last);
    if (segment.last > 0) {
      first = std::min(first, segment.first);
      last = std::max(last, segment.last);
    }
    decoded += segment.last - segment.first;
  }
  first = std::min(first, last);
  // Columns in no order: decoding all of them once is less work.
  if (decoded > 2 * (last - first)) {
    bool decodes = true;
    for (Segment& segment : plan.segments) {
      if (segment.source < 0) {
        segment.first = first;
        segment.last = last;
        segment.decodes = decodes;
        decodes = false;
      }
    }
  }
}

inline void add_lookup(const Columns& columns, RowPlan& plan) {
  plan.lookup.assign(static_cast<size_t>(columns.count), 0);
  plan.padded.assign(static_cast<size_t>(columns.count / plan.unit), 0);
  for (Segment& segment : plan.segments) {
    if (segment.source >= 0) {
      continue;
    }
    const int64_t start = segment.begin * plan.unit;
    const int64_t zero = segment.last - segment.first;
    for (int64_t i = start; i < segment.end * plan.unit; ++i) {
      const int64_t column = column_at(columns, i);
      plan.lookup[i] = static_cast<int32_t>(column < 0 ? zero : column - segment.first);
      segment.gathers |= plan.lookup[i] != i - start;
      if (column < 0) {
        plan.padded[i / plan.unit] = 1;
        plan.has_padding = true;
      }
    }
  }
}

inline RowPlan make_row_plan(
    const Encoding& source,
    int64_t cols,
    const Columns& columns,
    const Encoding& target) {
  RowPlan plan;
  add_segments(source, target, columns, plan);
  add_ranges(source, cols, columns, plan);
  add_lookup(columns, plan);
  return plan;
}

}  // namespace gemma_surgery::cpu
