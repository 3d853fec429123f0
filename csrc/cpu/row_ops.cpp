// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/row_ops.h"

#include <algorithm>
#include <limits>

#include "cpu/buffers.h"
#include "cpu/checks.h"
#include "cpu/float_functions.h"
#include "cpu/sizes.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

namespace {

// Elements below which waking another thread costs more than it saves.
constexpr int64_t kTaskElements = 32 * 1024;

void check(const char* where, const FloatRows& x, int64_t cols) {
  if (x.count < 0 || cols < 0) {
    fail(
        where,
        "need sizes of at least 0, got " + std::to_string(x.count) + " rows of " +
            std::to_string(cols));
  }
}

void check_like(const char* where, const FloatRows& x, const FloatRows& other) {
  if (x.count != other.count) {
    fail(
        where,
        "need as many rows in both inputs, got " + std::to_string(x.count) + " and " +
            std::to_string(other.count));
  }
}

Rows row(const FloatRows& rows, int64_t index) {
  const int64_t bytes = bytes_of(rows.dtype);
  return {rows.data + index * rows.stride * bytes, rows.dtype, rows.stride * bytes};
}

MutableRows row(const MutableFloatRows& rows, int64_t index) {
  const int64_t bytes = bytes_of(rows.dtype);
  return {rows.data + index * rows.stride * bytes, rows.dtype, rows.stride * bytes};
}

// work(index, scratch) for each of `count` rows of about `cols` elements.
template <typename Work>
void each_row(int64_t count, int64_t cols, int64_t scratch_floats, int threads, const Work& work) {
  const int64_t rows_per_task = std::max<int64_t>(kTaskElements / std::max<int64_t>(cols, 1), 1);
  const int64_t tasks = divided_up(count, rows_per_task);
  parallel_tasks(tasks, threads, [&](int64_t task) {
    float* scratch = thread_buffer<float>(Purpose::Tile, scratch_floats);
    const int64_t end = std::min(count, (task + 1) * rows_per_task);
    for (int64_t index = task * rows_per_task; index < end; ++index) {
      work(index, scratch);
    }
  });
}

void gelu_rows(
    const FloatRows& x,
    const FloatRows* up,
    int64_t cols,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  const FloatKernels& kernels = float_kernels(options.kernels);
  each_row(x.count, cols, kGeluScratch, options.threads, [&](int64_t i, float* scratch) {
    const Rows other = up != nullptr ? row(*up, i) : Rows{nullptr, Dtype::F32, 0};
    kernels.gelu(row(x, i), other, cols, row(out, i), scratch);
  });
}

}  // namespace

void rms_norm(
    const FloatRows& x,
    int64_t cols,
    const float* scale,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check("rms_norm", x, cols);
  const FloatKernels& kernels = float_kernels(options.kernels);
  each_row(x.count, cols, cols + kSlack, options.threads, [&](int64_t i, float* scratch) {
    const Rows none = {nullptr, Dtype::F32, 0};
    kernels.rms_norm(none, row(x, i), cols, scale, eps, row(out, i), scratch);
  });
}

void add_rms_norm(
    const FloatRows& h,
    const FloatRows& y,
    int64_t cols,
    const float* scale,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check("add_rms_norm", h, cols);
  check_like("add_rms_norm", h, y);
  const FloatKernels& kernels = float_kernels(options.kernels);
  each_row(h.count, cols, cols + kSlack, options.threads, [&](int64_t i, float* scratch) {
    kernels.rms_norm(row(h, i), row(y, i), cols, scale, eps, row(out, i), scratch);
  });
}

void layer_norm(
    const FloatRows& x,
    int64_t cols,
    const float* weight,
    const float* bias,
    float eps,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check("layer_norm", x, cols);
  const FloatKernels& kernels = float_kernels(options.kernels);
  each_row(x.count, cols, cols + kSlack, options.threads, [&](int64_t i, float* scratch) {
    kernels.layer_norm(row(x, i), cols, weight, bias, eps, row(out, i), scratch);
  });
}

void gelu_tanh(
    const FloatRows& x,
    int64_t cols,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check("gelu_tanh", x, cols);
  gelu_rows(x, nullptr, cols, out, options);
}

void gated_gelu(
    const FloatRows& gate,
    const FloatRows& up,
    int64_t cols,
    const MutableFloatRows& out,
    const FloatOptions& options) {
  check("gated_gelu", gate, cols);
  check_like("gated_gelu", gate, up);
  gelu_rows(gate, &up, cols, out, options);
}

void rope(
    const RopeShape& shape,
    const HeadsView& x,
    const float* periods,
    int64_t offset,
    const MutableHeadsView& out,
    const FloatOptions& options) {
  if (shape.batch < 0 || shape.heads < 0 || shape.tokens < 0 || shape.dims < 0 ||
      shape.dims > shape.dim || shape.dims % 2 != 0) {
    fail(
        "rope",
        "need an even number of rotated dimensions of at most " + std::to_string(shape.dim) +
            ", got " + std::to_string(shape.dims));
  }
  const FloatKernels& kernels = float_kernels(options.kernels);
  const int64_t pairs = shape.dims / 2;
  const int64_t x_bytes = bytes_of(x.dtype);
  const int64_t out_bytes = bytes_of(out.dtype);
  const int64_t token_elements = shape.batch * shape.heads * shape.dim;
  const int64_t floats = 2 * pairs + shape.dim + kSlack;
  each_row(shape.tokens, token_elements, floats, options.threads, [&](int64_t t, float* scratch) {
    float* const cos_sin = scratch;
    float* const values = scratch + 2 * pairs;
    kernels.rope_angles(periods, pairs, offset + t, cos_sin);
    for (int64_t batch = 0; batch < shape.batch; ++batch) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t from = batch * x.batch_stride + head * x.head_stride + t * x.token_stride;
        const int64_t to = batch * out.batch_stride + head * out.head_stride + t * out.token_stride;
        kernels.rope_row(
            {x.data + from * x_bytes, x.dtype, 0},
            shape.dim,
            pairs,
            cos_sin,
            {out.data + to * out_bytes, out.dtype, 0},
            values);
      }
    }
  });
}

}  // namespace gemma_surgery::cpu
