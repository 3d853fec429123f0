// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/requantize.h"

#include <memory>

#include "cpu/dispatch.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "mlx/ops.h"
#include "primitives/cpu_call.h"

namespace gemma_surgery::ops {

namespace {

constexpr const char* kWhere = "requantize";

bool is_dense(const cpu::Encoding& encoding) {
  return encoding.mode == cpu::Mode::Dense;
}

mx::Dtype mlx_dtype(cpu::Dtype dtype) {
  return dtype == cpu::Dtype::F32   ? mx::float32
         : dtype == cpu::Dtype::F16 ? mx::float16
                                    : mx::bfloat16;
}

bool same_encoding(const cpu::Encoding& a, const cpu::Encoding& b) {
  return a.dtype == b.dtype && a.mode == b.mode && a.bits == b.bits && a.group_size == b.group_size;
}

int64_t source_cols(const cpu::Encoding& source, const std::vector<mx::array>& inputs) {
  return is_dense(source) ? inputs[0].shape(1)
                          : static_cast<int64_t>(inputs[1].shape(1)) * source.group_size;
}

std::vector<mx::Shape>
target_shapes(const Requantize::State& state, const std::vector<mx::array>& inputs) {
  const size_t first_index = is_dense(state.source) ? 1 : 3;
  const auto cols = state.takes_columns ? inputs[first_index].shape(0)
                                        : static_cast<int>(source_cols(state.source, inputs));
  const int rows = state.takes_rows ? inputs.back().shape(0) : inputs[0].shape(0);
  if (is_dense(state.target)) {
    return {{rows, cols}};
  }
  const mx::Shape groups = {rows, cols / state.target.group_size};
  const int64_t bits = static_cast<int64_t>(cols) * state.target.bits;
  return {{rows, static_cast<int>(bits / 32)}, groups, groups};
}

mx::array
checked_indices(const char* name, const mx::array& indices, int64_t count, mx::Stream stream) {
  if (indices.ndim() != 1) {
    fail(
        kWhere,
        std::string("need one-dimensional `") + name + "`, got " + shape_text(indices.shape()));
  }
  check_known_indices(kWhere, name, indices, -1, count - 1);
  return as_indices(kWhere, name, indices, stream);
}

// Rows that were taken from the source, for as long as they are encoded.
class TakenRows {
 public:
  TakenRows(const cpu::Source& source, const cpu::RowBytes& row, const int32_t* rows, int64_t count)
      : source_{
            source.encoding,
            taken(0, source.weight, row.weight, rows, count),
            taken(1, source.scales, row.scales, rows, count),
            taken(2, source.biases, row.biases, rows, count)} {}

  const cpu::Source& source() const {
    return source_;
  }

 private:
  cpu::ConstBytes taken(
      int part,
      const cpu::ConstBytes& from,
      int64_t row_bytes,
      const int32_t* rows,
      int64_t count) {
    const int64_t size = row_bytes * count;
    parts_[part] = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(size));
    if (row_bytes > 0) {
      cpu::gather_rows(from, row_bytes, rows, count, {parts_[part].get(), size});
    }
    return {parts_[part].get(), size};
  }

  std::unique_ptr<uint8_t[]> parts_[3];
  cpu::Source source_;
};

}  // namespace

std::vector<mx::array> requantize(
    const MatrixArrays& source,
    const cpu::Encoding& source_encoding,
    const std::optional<mx::array>& columns,
    const std::optional<mx::array>& rows,
    const cpu::Encoding& target,
    bool refine,
    mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = mx::to_stream(stream_or_device);
  std::vector<mx::array> inputs = {source.weight};
  if (is_dense(source_encoding)) {
    check_float(kWhere, "weight", source.weight.dtype());
    if (source.weight.ndim() != 2) {
      fail(kWhere, "need a matrix [rows, cols], got " + shape_text(source.weight.shape()));
    }
  } else {
    affine_cols(
        kWhere,
        {source.weight, *source.scales, *source.biases},
        {source_encoding.bits, source_encoding.group_size});
    inputs.push_back(*source.scales);
    inputs.push_back(*source.biases);
  }
  const int64_t given_cols = source_cols(source_encoding, inputs);
  if (columns) {
    inputs.push_back(checked_indices("columns", *columns, given_cols, stream));
  }
  if (rows) {
    inputs.push_back(checked_indices("rows", *rows, source.weight.shape(0), stream));
  }
  const Requantize::State state = {
      source_encoding, target, columns.has_value(), rows.has_value(), refine};
  const int64_t cols = columns ? columns->shape(0) : given_cols;
  if (!is_dense(target) && cols % target.group_size != 0) {
    fail(
        kWhere,
        "need columns divisible by group size " + std::to_string(target.group_size) + ", got " +
            std::to_string(cols));
  }
  std::vector<mx::Dtype> dtypes = {mlx_dtype(target.dtype)};
  if (!is_dense(target)) {
    dtypes.insert(dtypes.begin(), mx::uint32);
    dtypes.push_back(dtypes.back());
  }
  return mx::array::make_arrays(
      target_shapes(state, inputs),
      dtypes,
      std::make_shared<Requantize>(stream, state),
      std::move(inputs));
}

void Requantize::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  CpuCall call(stream());
  const auto bytes = [&](const mx::array& x) -> cpu::ConstBytes {
    return {call.contiguous(x), static_cast<int64_t>(x.nbytes())};
  };
  const auto room = [&](mx::array& x) -> cpu::MutableBytes {
    return {call.output(x), static_cast<int64_t>(x.nbytes())};
  };
  cpu::Source source = {state_.source, bytes(inputs[0]), {}, {}};
  cpu::Target target = {state_.target, room(outputs[0]), {}, {}};
  if (!is_dense(state_.source)) {
    source.scales = bytes(inputs[1]);
    source.biases = bytes(inputs[2]);
  }
  if (!is_dense(state_.target)) {
    target.scales = room(outputs[1]);
    target.biases = room(outputs[2]);
  }
  const int64_t cols = source_cols(state_.source, inputs);
  cpu::Columns columns = {nullptr, cols};
  if (state_.takes_columns) {
    const mx::array& indices = inputs[is_dense(state_.source) ? 1 : 3];
    columns = {call.contiguous<int32_t>(indices), indices.shape(0)};
  }
  const auto* row_indices = state_.takes_rows ? call.contiguous<int32_t>(inputs.back()) : nullptr;
  const int64_t rows = outputs[0].shape(0);
  const cpu::ProductOptions options = cpu_options();
  call.run([=, refine = state_.refine] {
    const cpu::Kernels& kernels = options.kernels ? *options.kernels : cpu::find_kernels("");
    const int threads = options.threads > 0 ? options.threads : cpu::available_threads();
    const auto encode = [&](const cpu::Source& from) {
      cpu::requantize(from, rows, cols, columns, target, kernels, {threads, refine});
    };
    if (!row_indices) {
      return encode(source);
    }
    encode(TakenRows(source, cpu::row_bytes(source.encoding, cols), row_indices, rows).source());
  });
}

bool Requantize::is_equivalent(const mx::Primitive& other) const {
  const State& that = static_cast<const Requantize&>(other).state_;
  return same_encoding(state_.source, that.source) && same_encoding(state_.target, that.target) &&
         state_.takes_columns == that.takes_columns && state_.takes_rows == that.takes_rows &&
         state_.refine == that.refine;
}

std::vector<mx::Shape> Requantize::output_shapes(const std::vector<mx::array>& inputs) {
  return target_shapes(state_, inputs);
}

}  // namespace gemma_surgery::ops
