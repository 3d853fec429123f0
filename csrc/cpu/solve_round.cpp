// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// GPTQ's column loop by blocks of 128 columns: what the errors of all earlier columns say is
// subtracted when a block is reached, and within it when a group is. Rows are lanes of panels.
// An error e of column j adds (e / U_jj)^2 to that of the output, whatever becomes of the columns
// behind it; so these are the weights that scales and biases are fitted with.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/buffers.h"
#include "cpu/checks.h"
#include "cpu/dispatch.h"
#include "cpu/encoding.h"
#include "cpu/sizes.h"
#include "cpu/solve.h"
#include "cpu/solve_blocks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "round_compensated";

struct Rounding {
  const Kernels& kernels;
  const SolveKernels& loops;
  const FloatOptions& options;
  const float* weight;
  int64_t rows;
  int64_t cols;
  const float* upper;
  const int32_t* columns;  // [cols] in the order of processing
  bool fits_first;         // all groups, before the first column
  const float* weights;    // [cols] of the matrix: what errors of each count within its group
  Target target;
  RowBytes row;                  // of the target
  float* errors;                 // panels [cols, lanes]
  float* fits;                   // panels [groups, 3, lanes]
  uint8_t* codes;                // [rows, cols]
  float* blocks;                 // the block's columns of U, transposed, by blocks of earlier ones
  std::vector<int64_t>& faults;  // first column per panel of a group that cannot be stored

  int64_t groups() const {
    return cols / target.encoding.group_size;
  }

  int64_t rows_of(int64_t p) const {
    return std::min(loops.lanes, rows - p * loops.lanes);
  }

  float* errors_at(int64_t p, int64_t column) const {
    return errors + (p * cols + column) * loops.lanes;
  }

  float* fit_of(int64_t p, int64_t group) const {
    return fits + (p * groups() + group) * 3 * loops.lanes;
  }

  // Row r of block b: U[b * kRoundBlock + d, first + r].
  void pack(int64_t first, int64_t width) const {
    parallel_tasks(first + width, options.threads, [&](int64_t d) {
      float* const block = blocks + d / kRoundBlock * kRoundBlock * kSolveBlock + d % kRoundBlock;
      for (int64_t r = 0; r < width; ++r) {
        block[r * kSolveBlock] = upper[d * cols + first + r];
      }
    });
  }

  // Scale and bias of one group of a panel's rows, fitted to `tile` [group size, lanes].
  void fit(int64_t p, int64_t group, const float* tile) const {
    const int64_t lanes = loops.lanes;
    const int64_t size = target.encoding.group_size;
    const int64_t item = dtype_bytes(target.encoding.dtype);
    float* const values = thread_buffer<float>(Purpose::Panel, lanes * size + kSlack);
    uint8_t* const bytes = thread_buffer<uint8_t>(Purpose::Partial, lanes * (size + 8));
    loops.write_panel(tile, lanes, size, values, size);
    const Scratch scratch = thread_scratch(lanes * size);
    const EncodedRow out = {bytes, bytes + lanes * size, bytes + lanes * (size + 4)};
    const EncodeResult result =
        kernels.encode(target.encoding, values, lanes * size, nullptr, true, scratch, out);
    float* const to = fit_of(p, group);
    if (result.fault != Fault::None) {
      int64_t& fault = faults[static_cast<size_t>(p)];
      fault = std::min(fault, group * size);
      std::fill_n(to, 3 * lanes, 0.0f);
      return;
    }
    std::copy_n(scratch.scales, lanes, to);
    std::copy_n(scratch.biases, lanes, to + lanes);
    std::copy_n(scratch.inverses, lanes, to + 2 * lanes);
    loops.improve_fit(
        {tile,
         weights + group * size,
         to,
         out.scales,
         out.biases,
         size,
         static_cast<float>((1 << target.encoding.bits) - 1),
         target.encoding.dtype,
         target.encoding.mode == Mode::Symmetric});
    for (int64_t lane = 0; lane < rows_of(p); ++lane) {
      const int64_t at = p * lanes + lane;
      const auto count = static_cast<size_t>(item);
      std::memcpy(
          target.scales.data + at * row.scales + group * item, out.scales + lane * item, count);
      std::memcpy(
          target.biases.data + at * row.biases + group * item, out.biases + lane * item, count);
    }
  }

  // Weights of the columns [first, first + width) in processing order, as a tile.
  void read(int64_t p, int64_t first, int64_t width, float* tile) const {
    const int64_t lanes = loops.lanes;
    const float* const from = weight + p * lanes * cols;
    if (!fits_first) {
      loops.read_panel(from + first, cols, rows_of(p), width, tile);
      return;
    }
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        tile[j * lanes + lane] = lane < rows_of(p) ? from[lane * cols + columns[first + j]] : 0.0f;
      }
    }
  }

  // Rounds the columns of a tile that is up to date with all earlier blocks.
  void round(int64_t p, int64_t first, int64_t width, float* tile, uint8_t* tile_codes) const {
    const int64_t lanes = loops.lanes;
    const int64_t size = target.encoding.group_size;
    float* const block_errors = errors_at(p, first);
    const float* const corner = blocks + first * kSolveBlock;
    const int64_t run = fits_first ? width : size;
    for (int64_t begin = 0; begin < width; begin += run) {
      if (!fits_first) {
        loops.subtract_product(
            corner + begin * kSolveBlock, block_errors, run, begin, tile + begin * lanes);
        fit(p, (first + begin) / size, tile + begin * lanes);
      }
      loops.round_run(
          {corner,
           tile,
           block_errors,
           tile_codes,
           fit_of(p, 0),
           columns + first,
           size,
           begin,
           begin + run,
           static_cast<float>((1 << target.encoding.bits) - 1)});
    }
    for (int64_t lane = 0; lane < rows_of(p); ++lane) {
      uint8_t* const to = codes + (p * lanes + lane) * cols;
      for (int64_t j = 0; j < width; ++j) {
        to[columns[first + j]] = tile_codes[j * lanes + lane];
      }
    }
  }

  void fit_all() const {
    const int64_t size = target.encoding.group_size;
    parallel_tasks(divided_up(rows, loops.lanes), options.threads, [&](int64_t p) {
      float* const tile = thread_buffer<float>(Purpose::Tile, size * loops.lanes);
      for (int64_t group = 0; group < groups(); ++group) {
        const float* const from = weight + p * loops.lanes * cols + group * size;
        loops.read_panel(from, cols, rows_of(p), size, tile);
        fit(p, group, tile);
      }
    });
  }

  void round_block(int64_t first, int64_t width) const {
    const int64_t lanes = loops.lanes;
    pack(first, width);
    parallel_panels(divided_up(rows, lanes), options.threads, [&](PanelRange range) {
      const int64_t tile_floats = kRoundBlock * lanes;
      float* const tiles = thread_buffer<float>(Purpose::Tile, kMostPanels * tile_floats);
      uint8_t* const tile_codes = thread_buffer<uint8_t>(Purpose::Operand, tile_floats + kSlack);
      for (int64_t p = 0; p < range.count; ++p) {
        read(range.first + p, first, width, tiles + p * tile_floats);
      }
      for (int64_t d = 0; d < first; d += kRoundBlock) {
        for (int64_t p = 0; p < range.count; ++p) {
          loops.subtract_product(
              blocks + d * kSolveBlock,
              errors_at(range.first + p, d),
              width,
              kRoundBlock,
              tiles + p * tile_floats);
        }
      }
      for (int64_t p = 0; p < range.count; ++p) {
        round(range.first + p, first, width, tiles + p * tile_floats, tile_codes);
      }
    });
  }

  void write_codes() const {
    parallel_tasks(rows, options.threads, [&](int64_t r) {
      uint8_t* const to = target.weight.data + r * row.weight;
      loops.pack_codes(target.encoding.bits, codes + r * cols, cols, to);
    });
  }
};

std::vector<int32_t> checked_columns(const int32_t* order, int64_t cols) {
  std::vector<int32_t> columns(static_cast<size_t>(cols));
  std::iota(columns.begin(), columns.end(), 0);
  if (order != nullptr) {
    std::vector<int32_t> sorted(order, order + cols);
    std::sort(sorted.begin(), sorted.end());
    if (sorted != columns) {
      fail(kWhere, "need each column once in the order, got some twice or out of range");
    }
    columns.assign(order, order + cols);
  }
  return columns;
}

// 1 / U_jj^2 by columns of the matrix; those of a group sum to 1.
std::vector<float>
column_weights(const float* upper, const std::vector<int32_t>& columns, int64_t group_size) {
  const auto cols = static_cast<int64_t>(columns.size());
  std::vector<double> costs(columns.size());
  for (int64_t j = 0; j < cols; ++j) {
    const double root = 1.0 / static_cast<double>(upper[j * cols + j]);
    costs[static_cast<size_t>(columns[static_cast<size_t>(j)])] = root * root;
  }
  std::vector<float> weights(columns.size());
  for (int64_t first = 0; first < cols; first += group_size) {
    const auto group = costs.begin() + first;
    const double sum = std::accumulate(group, group + group_size, 0.0);
    std::transform(group, group + group_size, weights.begin() + first, [sum](double cost) {
      return static_cast<float>(cost / sum);
    });
  }
  return weights;
}

}  // namespace

void round_compensated(
    const float* weight,
    int64_t rows,
    int64_t cols,
    const float* upper,
    const int32_t* order,
    const Target& target,
    const FloatOptions& options) {
  const FloatMode mode;
  const Encoding& encoding = target.encoding;
  if (encoding.mode != Mode::Affine && encoding.mode != Mode::Symmetric) {
    fail(kWhere, "need an affine or symmetric encoding, got " + describe(encoding));
  }
  const RowBytes row = check_target(kWhere, target, rows, cols);
  check_factor(kWhere, upper, cols, options.threads);
  check_finite(kWhere, "weight", weight, rows, cols, options.threads);
  const std::vector<int32_t> columns = checked_columns(order, cols);
  const std::vector<float> weights = column_weights(upper, columns, encoding.group_size);
  const Kernels& kernels = options.kernels != nullptr ? *options.kernels : find_kernels("");
  const SolveKernels& loops = *kernels.solve;
  const int64_t panels = divided_up(rows, loops.lanes);
  const Floats64 errors = make_floats(panels * cols * loops.lanes);
  const Floats64 fits = make_floats(panels * cols / encoding.group_size * 3 * loops.lanes);
  const Floats64 blocks = make_floats(divided_up(cols, kRoundBlock) * kRoundBlock * kSolveBlock);
  std::vector<uint8_t> codes(static_cast<size_t>(rows * cols));
  std::vector<int64_t> faults(static_cast<size_t>(panels), cols);
  const Rounding work = {
      kernels,
      loops,
      options,
      weight,
      rows,
      cols,
      upper,
      columns.data(),
      order != nullptr,
      weights.data(),
      target,
      row,
      errors.get(),
      fits.get(),
      codes.data(),
      blocks.get(),
      faults};
  if (order != nullptr) {
    work.fit_all();
  }
  for (int64_t first = 0; first < cols; first += kRoundBlock) {
    work.round_block(first, std::min(kRoundBlock, cols - first));
  }
  // The first group of all: which panel a row is in differs between instruction sets.
  int64_t fault = cols;
  for (const int64_t column : faults) {
    fault = std::min(fault, column);
  }
  if (fault < cols) {
    fail(
        kWhere,
        "need values that fit " + describe(encoding) +
            ", got one that is too large in the group that starts at column " +
            std::to_string(fault));
  }
  check_finite(kWhere, "rounding error", errors.get(), panels * loops.lanes, cols, options.threads);
  work.write_codes();
}

}  // namespace gemma_surgery::cpu
