// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/product_plan.h"

#include <algorithm>
#include <cstring>

#include "cpu/buffers.h"
#include "cpu/dispatch.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

namespace {

// Up to this many rows of x, by planes, unfolding the matrix for each is faster than packing it.
constexpr int64_t kFewRows[kMaxPlanes + 1] = {0, 8, 6, 4};

// Digits of x that are kept at a time: they are read once per span and should stay near.
constexpr int64_t kOperandBytes = int64_t{6} << 20;

int64_t padded(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int planes_of(Dtype dtype, Activations activations) {
  if (activations == Activations::Int8) {
    return 1;
  }
  return activations == Activations::Full && dtype == Dtype::F32 ? 3 : 2;
}

// Rows of x as integers, in the layout that the loop wants.
class Operand {
 public:
  Operand(const AffineMatrix& w, const ProductKernels& kernels, int planes, int64_t rows)
      : w_(w), kernels_(kernels), planes_(planes), is_few_(rows <= kFewRows[planes]) {
    groups_ = padded(w.cols / w.group_size, kernels.lanes);
    tile_rows_ = kernels.tile_digits / planes;
    const int64_t all_rows = is_few_ ? rows : padded(rows, tile_rows_);
    row_bytes_ = kernels.row_bytes(w.bits, w.group_size, w.cols, planes);
    const int64_t bytes =
        is_few_ ? rows * row_bytes_ : all_rows / tile_rows_ * kernels.tile_digits * w.cols;
    const int64_t floats = all_rows * groups_;
    auto* memory = thread_buffer<uint8_t>(
        Purpose::Operand, padded(bytes, 64) + 2 * floats * static_cast<int64_t>(sizeof(float)));
    digits_ = reinterpret_cast<int8_t*>(memory);
    units_ = reinterpret_cast<float*>(memory + padded(bytes, 64));
    sums_ = units_ + floats;
    rows_ = all_rows;
  }

  void fill(const FloatRows& x, int64_t first, int64_t count, int threads) {
    const int64_t size = x.dtype == Dtype::F32 ? 4 : 2;
    // A task is a few rows: one alone would cost more to hand out than to do.
    constexpr int64_t kTaskRows = 8;
    parallel_tasks((rows_ + kTaskRows - 1) / kTaskRows, threads, [&](int64_t task) {
      for (int64_t t = task * kTaskRows; t < std::min((task + 1) * kTaskRows, rows_); ++t) {
        std::fill_n(units_ + t * groups_, groups_, 0.0f);
        std::fill_n(sums_ + t * groups_, groups_, 0.0f);
        fill_row(t < count ? x.data + (first + t) * x.stride * size : nullptr, x.dtype, t);
      }
    });
  }

  // Row `t` for `rows`, or the tile that starts at row `t`.
  FixedPoint at(int64_t t) const {
    const int64_t offset =
        is_few_ ? t * row_bytes_ : t / tile_rows_ * kernels_.tile_digits * w_.cols;
    return {
        planes_, digits_ + offset, row_bytes_, units_ + t * groups_, sums_ + t * groups_, groups_};
  }

  bool is_few() const {
    return is_few_;
  }
  int64_t tile_rows() const {
    return tile_rows_;
  }

 private:
  void fill_row(const uint8_t* row, Dtype dtype, int64_t t) {
    const int64_t natural_bytes = padded(planes_ * w_.cols, 64);
    auto* natural = thread_buffer<int8_t>(Purpose::Partial, natural_bytes + row_bytes_);
    if (row == nullptr) {
      std::memset(natural, 0, static_cast<size_t>(planes_ * w_.cols));
    } else {
      kernels_.split(
          row,
          dtype,
          w_.cols,
          w_.group_size,
          planes_,
          natural,
          units_ + t * groups_,
          sums_ + t * groups_);
    }
    int8_t* arranged = is_few_ ? digits_ + t * row_bytes_ : natural + natural_bytes;
    kernels_.arrange(natural, w_.bits, w_.group_size, w_.cols, planes_, arranged);
    if (!is_few_) {
      scatter(arranged, t);
    }
  }

  // Row `t` into its tile; quads of one word stand `lanes` quads apart in the arranged row.
  void scatter(const int8_t* arranged, int64_t t) {
    const int64_t vectors = unfolded_by(w_.bits);
    const int64_t words = w_.cols / (4 * vectors);
    int8_t* tile =
        digits_ + t / tile_rows_ * kernels_.tile_digits * w_.cols + t % tile_rows_ * planes_ * 4;
    for (int64_t word = 0; word < words; ++word) {
      const int64_t step = word / kernels_.lanes;
      for (int64_t s = 0; s < vectors; ++s) {
        const int8_t* from =
            arranged +
            ((step * vectors + s) * planes_ * kernels_.lanes + word % kernels_.lanes) * 4;
        int8_t* to = tile + (word * vectors + s) * kernels_.tile_digits * 4;
        for (int plane = 0; plane < planes_; ++plane) {
          std::memcpy(to + 4 * plane, from + plane * kernels_.lanes * 4, 4);
        }
      }
    }
  }

  const AffineMatrix& w_;
  const ProductKernels& kernels_;
  int planes_;
  bool is_few_;
  int64_t groups_ = 0;
  int64_t tile_rows_ = 0;
  int64_t row_bytes_ = 0;
  int64_t rows_ = 0;
  int8_t* digits_ = nullptr;
  float* units_ = nullptr;
  float* sums_ = nullptr;
};

struct Walk {
  const AffineMatrix& w;
  const ProductKernels& kernels;
  const Operand& x;
  int64_t first_t;
  int64_t count_t;
  Consumer& consumer;

  void few_rows(int64_t span, int64_t begin, int64_t end) const {
    const FixedPoint rows = x.at(0);
    auto* partial =
        thread_buffer<float>(Purpose::Partial, count_t * kRowBlock * rows.padded_groups);
    auto* values = thread_buffer<float>(Purpose::Tile, count_t * kBlockRows);
    for (int64_t block = begin; block < end; block += kBlockRows) {
      const int64_t block_end = std::min(block + kBlockRows, end);
      for (int64_t row = block; row < block_end; row += kRowBlock) {
        kernels.rows(
            w,
            row,
            std::min(kRowBlock, block_end - row),
            rows,
            count_t,
            partial,
            values + (row - block),
            kBlockRows);
      }
      for (int64_t t = 0; t < count_t; ++t) {
        consumer.take(span, first_t + t, block, block_end - block, values + t * kBlockRows);
      }
    }
  }

  void tiles(int64_t span, int64_t begin, int64_t end) const {
    const int64_t panels = kBlockRows / kernels.tile_cols;
    const int64_t groups = w.cols / w.group_size;
    const int64_t code_bytes = kernels.tile_cols * padded(w.cols, kPanelCols);
    const int64_t params = kernels.tile_cols * groups;
    auto* codes = thread_buffer<uint8_t>(
        Purpose::Panel, panels * (code_bytes + 2 * params * static_cast<int64_t>(sizeof(float))));
    auto* scales = reinterpret_cast<float*>(codes + panels * code_bytes);
    float* biases = scales + panels * params;
    auto* values = thread_buffer<float>(Purpose::Tile, x.tile_rows() * kBlockRows);
    for (int64_t block = begin; block < end; block += kBlockRows) {
      const int64_t count = std::min(kBlockRows, end - block);
      const int64_t used = (count + kernels.tile_cols - 1) / kernels.tile_cols;
      for (int64_t p = 0; p < used; ++p) {
        kernels.pack(
            w,
            block + p * kernels.tile_cols,
            codes + p * code_bytes,
            scales + p * params,
            biases + p * params);
      }
      for (int64_t t = 0; t < count_t; t += x.tile_rows()) {
        const FixedPoint rows = x.at(t);
        const int64_t live = std::min(x.tile_rows(), count_t - t);
        for (int64_t p = 0; p < used; ++p) {
          kernels.tile(
              codes + p * code_bytes,
              scales + p * params,
              biases + p * params,
              w.bits,
              groups,
              w.group_size,
              rows,
              values + p * kernels.tile_cols,
              kBlockRows);
        }
        for (int64_t m = 0; m < live; ++m) {
          consumer.take(span, first_t + t + m, block, count, values + m * kBlockRows);
        }
      }
    }
  }
};

}  // namespace

void run_products(
    const AffineMatrix& w,
    const FloatRows& x,
    int64_t span_rows,
    const ProductOptions& options,
    Consumer& consumer) {
  const Kernels& table = options.kernels ? *options.kernels : find_kernels("");
  const ProductKernels& kernels = *table.products;
  const int planes = planes_of(x.dtype, options.activations);
  const int64_t fits = std::max(kOperandBytes / (w.cols * planes), kernels.tile_digits);
  const int64_t spans = (w.rows + span_rows - 1) / span_rows;
  for (int64_t first = 0; first < x.count; first += fits) {
    const int64_t count = std::min(fits, x.count - first);
    Operand operand(w, kernels, planes, count);
    operand.fill(x, first, count, options.threads);
    const Walk walk = {w, kernels, operand, first, count, consumer};
    parallel_tasks(spans, options.threads, [&](int64_t span) {
      const int64_t begin = span * span_rows;
      const int64_t end = std::min(begin + span_rows, w.rows);
      if (operand.is_few()) {
        walk.few_rows(span, begin, end);
      } else {
        walk.tiles(span, begin, end);
      }
    });
  }
}

}  // namespace gemma_surgery::cpu
