// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// decode -> take columns -> encode, row by row in a few cached buffers. Each target row
// is a sequence of segments: groups that move whole between equal layouts are copied,
// the others are encoded. Bytes moved: source rows once, target rows once.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/checks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "requantize";

// Target units [begin, end): groups of a quantized matrix, or the columns of a dense one.
struct Segment {
  int64_t begin;
  int64_t end;
  int64_t source;  // first source group to copy, -1: encode
};

// Everything that is the same for all rows.
struct RowPlan {
  std::vector<Segment> segments;
  std::vector<int32_t> lookup;  // per target column, where to find it in the decoded row
  std::vector<uint8_t> padded;  // per target group: holds a zero column
  int64_t unit = 1;             // columns per unit
  int64_t first = 0;            // decoded source columns
  int64_t last = 0;
  bool gathers = false;
  bool has_padding = false;
};

int64_t column_at(const Columns& columns, int64_t i) {
  return columns.indices ? columns.indices[i] : i;
}

// The source group that target group `g` copies whole, or -1.
int64_t whole_group(const Columns& columns, int64_t g, int64_t size) {
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

void add_segments(
    const Source& source,
    const Target& target,
    const Columns& columns,
    RowPlan& plan) {
  if (target.encoding.mode == Mode::Dense) {
    plan.segments.push_back({0, columns.count, -1});
    return;
  }
  plan.unit = target.encoding.group_size;
  const bool copies = same_layout(source.encoding, target.encoding);
  for (int64_t g = 0; g < columns.count / plan.unit; ++g) {
    const int64_t from = copies ? whole_group(columns, g, plan.unit) : -1;
    if (!plan.segments.empty()) {
      Segment& previous = plan.segments.back();
      const int64_t next =
          previous.source < 0 ? -1 : previous.source + previous.end - previous.begin;
      if (from == next) {
        ++previous.end;
        continue;
      }
    }
    plan.segments.push_back({g, g + 1, from});
  }
}

// Which source columns must be decoded, and where each target column then is.
void add_lookup(const Source& source, int64_t cols, const Columns& columns, RowPlan& plan) {
  plan.first = cols;
  for (const Segment& segment : plan.segments) {
    if (segment.source >= 0) {
      continue;
    }
    for (int64_t i = segment.begin * plan.unit; i < segment.end * plan.unit; ++i) {
      const int64_t column = column_at(columns, i);
      if (column >= 0) {
        plan.first = std::min(plan.first, column);
        plan.last = std::max(plan.last, column + 1);
      }
    }
  }
  plan.first = std::min(plan.first, plan.last);
  if (source.encoding.mode != Mode::Dense) {
    const int64_t group = source.encoding.group_size;
    plan.first = plan.first / group * group;
    plan.last = (plan.last + group - 1) / group * group;
  }
  plan.lookup.assign(static_cast<size_t>(columns.count), 0);
  plan.padded.assign(static_cast<size_t>(columns.count / plan.unit), 0);
  const int64_t zero = plan.last - plan.first;
  for (const Segment& segment : plan.segments) {
    for (int64_t i = segment.begin * plan.unit; segment.source < 0 && i < segment.end * plan.unit;
         ++i) {
      const int64_t column = column_at(columns, i);
      plan.lookup[i] = static_cast<int32_t>(column < 0 ? zero : column - plan.first);
      plan.gathers |= plan.lookup[i] != i;
      if (column < 0) {
        plan.padded[i / plan.unit] = 1;
        plan.has_padding = true;
      }
    }
  }
}

[[noreturn]] void report(
    const EncodeResult& result,
    int64_t row,
    int64_t target_column,
    const Columns& columns,
    const Encoding& target) {
  const int64_t column = column_at(columns, target_column);
  const std::string place =
      " at row " + std::to_string(row) + ", source column " + std::to_string(column);
  if (result.fault == Fault::NonFinite) {
    fail(kWhere, "need finite values, got an infinity or not-a-number" + place);
  }
  const char* where = target.mode == Mode::Dense ? "" : " in the group that starts";
  fail(
      kWhere,
      "need values that fit " + describe(target) + ", got one that is too large" + where + place);
}

void move(uint8_t* out, const uint8_t* from, int64_t bytes) {
  if (bytes > 0) {
    std::memcpy(out, from, static_cast<size_t>(bytes));
  }
}

class RowWorker {
 public:
  RowWorker(
      const Source& source,
      const Target& target,
      int64_t cols,
      const Columns& columns,
      const RowPlan& plan,
      const Kernels& kernels,
      bool refine)
      : source_(source),
        target_(target),
        columns_(columns),
        plan_(plan),
        kernels_(kernels),
        refine_(refine),
        source_row_(row_bytes(source.encoding, cols)),
        target_row_(row_bytes(target.encoding, columns.count)),
        source_start_(row_bytes(source.encoding, plan.first)),
        scratch_(thread_scratch(std::max(cols, columns.count))) {}

  void run(int64_t row) {
    const uint8_t* weight = source_.weight.data + row * source_row_.weight;
    const uint8_t* scales = source_.scales.data + row * source_row_.scales;
    const uint8_t* biases = source_.biases.data + row * source_row_.biases;
    const EncodedRow out = {
        target_.weight.data + row * target_row_.weight,
        target_.scales.data + row * target_row_.scales,
        target_.biases.data + row * target_row_.biases};
    const int64_t width = plan_.last - plan_.first;
    if (width > 0) {
      kernels_.decode(
          source_.encoding,
          weight + source_start_.weight,
          scales + source_start_.scales,
          biases + source_start_.biases,
          width,
          scratch_,
          scratch_.values);
    }
    scratch_.values[width] = 0.0f;
    for (const Segment& segment : plan_.segments) {
      const RowBytes begin = row_bytes(target_.encoding, segment.begin * plan_.unit);
      const EncodedRow part = {
          out.weight + begin.weight, out.scales + begin.scales, out.biases + begin.biases};
      const int64_t count = (segment.end - segment.begin) * plan_.unit;
      if (segment.source >= 0) {
        copy(weight, scales, biases, segment.source, count, part);
      } else {
        encode(row, segment, count, part);
      }
    }
  }

 private:
  void copy(
      const uint8_t* weight,
      const uint8_t* scales,
      const uint8_t* biases,
      int64_t group,
      int64_t count,
      const EncodedRow& out) {
    const RowBytes start = row_bytes(source_.encoding, group * plan_.unit);
    const RowBytes size = row_bytes(source_.encoding, count);
    move(out.weight, weight + start.weight, size.weight);
    move(out.scales, scales + start.scales, size.scales);
    move(out.biases, biases + start.biases, size.biases);
  }

  void encode(int64_t row, const Segment& segment, int64_t count, const EncodedRow& out) {
    const int64_t first_column = segment.begin * plan_.unit;
    const float* values = scratch_.values + first_column;
    if (plan_.gathers) {
      kernels_.gather(
          scratch_.values, plan_.lookup.data() + first_column, count, scratch_.gathered);
      values = scratch_.gathered;
    }
    const uint8_t* padded = plan_.has_padding ? plan_.padded.data() + segment.begin : nullptr;
    const EncodeResult result =
        kernels_.encode(target_.encoding, values, count, padded, refine_, scratch_, out);
    if (result.fault != Fault::None) {
      report(result, row, first_column + result.column, columns_, target_.encoding);
    }
  }

  const Source& source_;
  const Target& target_;
  const Columns& columns_;
  const RowPlan& plan_;
  const Kernels& kernels_;
  bool refine_;
  RowBytes source_row_;
  RowBytes target_row_;
  RowBytes source_start_;
  Scratch scratch_;
};

// Equal dense formats move as bytes, so that even the payload of a NaN is kept.
void gather_dense(
    const Source& source,
    int64_t rows,
    int64_t cols,
    const Columns& columns,
    const Target& target,
    int threads) {
  const int64_t element = dtype_bytes(source.encoding.dtype);
  parallel_rows(rows, threads, [&](int64_t begin, int64_t end) {
    const int64_t in = begin * cols * element;
    const int64_t out = begin * columns.count * element;
    gather_units(
        {source.weight.data + in, (end - begin) * cols * element},
        end - begin,
        cols * element,
        element,
        columns.indices,
        columns.count,
        {target.weight.data + out, (end - begin) * columns.count * element});
  });
}

}  // namespace

void requantize(
    const Source& source,
    int64_t rows,
    int64_t cols,
    const Columns& columns,
    const Target& target,
    const Kernels& kernels,
    const RequantizeOptions& options) {
  check_source(kWhere, source, rows, cols);
  check_target(kWhere, target, rows, columns.count);
  if (options.threads < 1) {
    fail(kWhere, "need at least 1 thread, got " + std::to_string(options.threads));
  }
  if (columns.indices) {
    check_indices(kWhere, "column indices", columns.indices, columns.count, cols);
  }
  if (same_layout(source.encoding, target.encoding) && !columns.indices) {
    move(target.weight.data, source.weight.data, source.weight.size);
    move(target.scales.data, source.scales.data, source.scales.size);
    move(target.biases.data, source.biases.data, source.biases.size);
    return;
  }
  if (source.encoding.mode == Mode::Dense && same_layout(source.encoding, target.encoding)) {
    return gather_dense(source, rows, cols, columns, target, options.threads);
  }
  RowPlan plan;
  add_segments(source, target, columns, plan);
  add_lookup(source, cols, columns, plan);
  parallel_rows(rows, options.threads, [&](int64_t begin, int64_t end) {
    RowWorker worker(source, target, cols, columns, plan, kernels, options.refine);
    for (int64_t row = begin; row < end; ++row) {
      worker.run(row);
    }
  });
}

}  // namespace gemma_surgery::cpu
