// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// decode -> take columns -> encode, row by row and segment by segment in a few cached
// buffers. Bytes moved: source rows once, target rows once.

#include <algorithm>
#include <cstring>

#include "cpu/checks.h"
#include "cpu/row_plan.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "requantize";

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
        scratch_(thread_scratch(std::max(cols, columns.count))) {}

  void run(int64_t row) {
    for (const Segment& segment : plan_.segments) {
      if (segment.source >= 0) {
        copy(row, segment);
      } else {
        encode(row, segment);
      }
    }
  }

 private:
  void copy(int64_t row, const Segment& segment) {
    const RowBytes size = row_bytes(source_.encoding, (segment.end - segment.begin) * plan_.unit);
    const SourceRow from = part_of_source(row, segment.source * plan_.unit);
    const EncodedRow out = part_of_target(row, segment.begin);
    move(out.weight, from.weight, size.weight);
    move(out.scales, from.scales, size.scales);
    move(out.biases, from.biases, size.biases);
  }

  void encode(int64_t row, const Segment& segment) {
    const int64_t first_column = segment.begin * plan_.unit;
    const int64_t count = segment.end * plan_.unit - first_column;
    const int64_t width = segment.last - segment.first;
    if (segment.decodes && width > 0) {
      const SourceRow from = part_of_source(row, segment.first);
      kernels_.decode(
          source_.encoding,
          from.weight,
          from.scales,
          from.biases,
          width,
          scratch_,
          scratch_.values);
    }
    scratch_.values[width] = 0.0f;
    const float* values = scratch_.values;
    if (segment.gathers) {
      kernels_.gather(
          scratch_.values, plan_.lookup.data() + first_column, count, scratch_.gathered);
      values = scratch_.gathered;
    }
    const EncodeResult result = kernels_.encode(
        target_.encoding,
        values,
        count,
        plan_.has_padding ? plan_.padded.data() + segment.begin : nullptr,
        refine_,
        scratch_,
        part_of_target(row, segment.begin));
    if (result.fault != Fault::None) {
      report(result, row, first_column + result.column, columns_, target_.encoding);
    }
  }

  struct SourceRow {
    const uint8_t* weight;
    const uint8_t* scales;
    const uint8_t* biases;
  };

  SourceRow part_of_source(int64_t row, int64_t column) const {
    const RowBytes start = row_bytes(source_.encoding, column);
    return {
        source_.weight.data + row * source_row_.weight + start.weight,
        source_.scales.data + row * source_row_.scales + start.scales,
        source_.biases.data + row * source_row_.biases + start.biases};
  }

  EncodedRow part_of_target(int64_t row, int64_t unit) const {
    const RowBytes begin = row_bytes(target_.encoding, unit * plan_.unit);
    return {
        target_.weight.data + row * target_row_.weight + begin.weight,
        target_.scales.data + row * target_row_.scales + begin.scales,
        target_.biases.data + row * target_row_.biases + begin.biases};
  }

  const Source& source_;
  const Target& target_;
  const Columns& columns_;
  const RowPlan& plan_;
  const Kernels& kernels_;
  bool refine_;
  RowBytes source_row_;
  RowBytes target_row_;
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
  const RowPlan plan = make_row_plan(source.encoding, cols, columns, target.encoding);
  parallel_rows(rows, options.threads, [&](int64_t begin, int64_t end) {
    RowWorker worker(source, target, cols, columns, plan, kernels, options.refine);
    for (int64_t row = begin; row < end; ++row) {
      worker.run(row);
    }
  });
}

}  // namespace gemma_surgery::cpu
