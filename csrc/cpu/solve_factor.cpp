// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Triangular factors in place, by rows of blocks: what comes before a block is subtracted first,
// then the block itself is eliminated. With U = J M J, where J reverses rows and columns, the
// inverse factor takes one factorization of the reversed matrix, J H J = L L^T, and M = L^-1:
// H^-1 itself is never formed.

#include <algorithm>
#include <string>

#include "cpu/buffers.h"
#include "cpu/checks.h"
#include "cpu/sizes.h"
#include "cpu/solve.h"
#include "cpu/solve_blocks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

constexpr double kDampingStep = 0.01;
constexpr double kMostDamping = 1000.0;

// The tiles of a task and the panel that they are being multiplied with.
struct Tiles {
  const SolveKernels& kernels;
  float* data;
  float* panel;

  explicit Tiles(const SolveKernels& of)
      : kernels(of),
        data(thread_buffer<float>(Purpose::Tile, kMostPanels * kSolveBlock * of.lanes)),
        panel(thread_buffer<float>(Purpose::Panel, kSolveBlock * of.lanes)) {}

  float* at(int64_t index) const {
    return data + index * kSolveBlock * kernels.lanes;
  }
};

// Rows of L from `row` on, taken by panels, less the products with the block's own rows; then
// what `finish(tile)` makes of them, back into the matrix.
template <typename Finish>
void eliminate_rows(
    const SolveKernels& kernels,
    float* matrix,
    int64_t size,
    int64_t first,
    int64_t width,
    const float* blocks,
    int64_t row,
    int64_t rows,
    const PanelRange& range,
    const Finish& finish) {
  const Tiles tiles(kernels);
  const int64_t lanes = kernels.lanes;
  const auto rows_of = [&](int64_t p) { return std::min(lanes, rows - (range.first + p) * lanes); };
  const auto data_of = [&](int64_t p) { return matrix + (row + (range.first + p) * lanes) * size; };
  // Of the block's own rows only those columns count that lie left of the diagonal.
  const auto width_of = [&](int64_t p) {
    return row > first ? width : std::min(width, (range.first + p + 1) * lanes);
  };
  for (int64_t p = 0; p < range.count; ++p) {
    kernels.read_panel(data_of(p) + first, size, rows_of(p), width_of(p), tiles.at(p));
  }
  for (int64_t d = 0; d < first; d += kSolveBlock) {
    for (int64_t p = 0; p < range.count; ++p) {
      kernels.read_panel(data_of(p) + d, size, rows_of(p), kSolveBlock, tiles.panel);
      kernels.subtract_product(
          blocks + d * kSolveBlock, tiles.panel, width_of(p), kSolveBlock, tiles.at(p));
    }
  }
  for (int64_t p = 0; p < range.count; ++p) {
    finish(tiles.at(p));
    kernels.write_panel(tiles.at(p), rows_of(p), width_of(p), data_of(p) + first, size);
  }
}

// The lower triangle to its Cholesky factor; false where a pivot is not positive.
bool cholesky(float* matrix, int64_t size, float* blocks, const FloatOptions& options) {
  const SolveKernels& kernels = solve_kernels(options.kernels);
  const Floats64 diagonal = make_floats(kBlockFloats);
  for (int64_t first = 0; first < size; first += kSolveBlock) {
    const int64_t width = std::min(kSolveBlock, size - first);
    const int64_t next = first + width;
    pack_blocks(matrix, size, first, width, first, blocks, options.threads);
    parallel_panels(divided_up(width, kernels.lanes), options.threads, [&](PanelRange range) {
      eliminate_rows(
          kernels, matrix, size, first, width, blocks, first, width, range, [](float*) {});
    });
    float* const corner = matrix + first * size + first;
    for (int64_t r = 0; r < width; ++r) {
      std::copy_n(corner + r * size, width, diagonal.get() + r * kSolveBlock);
    }
    if (!kernels.cholesky_block(diagonal.get(), width)) {
      return false;
    }
    for (int64_t r = 0; r < width; ++r) {
      std::copy_n(diagonal.get() + r * kSolveBlock, r + 1, corner + r * size);
    }
    const int64_t below = size - next;
    parallel_panels(divided_up(below, kernels.lanes), options.threads, [&](PanelRange range) {
      eliminate_rows(
          kernels, matrix, size, first, width, blocks, next, below, range, [&](float* tile) {
            kernels.solve_lower(diagonal.get(), width, tile);
          });
    });
  }
  return true;
}

// `width` columns of `depth` rows as a panel; further lanes are zero.
void copy_panel(
    const float* from,
    int64_t stride,
    int64_t width,
    int64_t depth,
    int64_t lanes,
    float* panel) {
  for (int64_t d = 0; d < depth; ++d) {
    std::copy_n(from + d * stride, width, panel + d * lanes);
    std::fill_n(panel + d * lanes + width, lanes - width, 0.0f);
  }
}

// The mean of the diagonal where data say something.
double mean_of(const char* where, const std::vector<float>& diagonal) {
  double sum = 0.0;
  int64_t count = 0;
  for (const float value : diagonal) {
    if (!(value >= 0.0f)) {
      fail(
          where,
          "need a Hessian with a diagonal of at least 0, got an element " + std::to_string(value));
    }
    sum += static_cast<double>(value);
    count += value > 0.0f;
  }
  return count > 0 ? sum / static_cast<double>(count) : 1.0;
}

// Element i to place size * size - 1 - i: rows and columns reversed.
void reverse(float* matrix, int64_t size, int threads) {
  const int64_t last = size * size - 1;
  const int64_t half = size * size / 2;
  parallel_tasks(divided_up(half, kBlockFloats), threads, [&](int64_t task) {
    const int64_t end = std::min(half, (task + 1) * kBlockFloats);
    for (int64_t i = task * kBlockFloats; i < end; ++i) {
      std::swap(matrix[i], matrix[last - i]);
    }
  });
}

}  // namespace

double factor_damped(
    const char* where,
    float* matrix,
    const std::vector<float>& diagonal,
    double damping,
    const FloatOptions& options,
    const Task& fill_row) {
  const auto size = static_cast<int64_t>(diagonal.size());
  if (!(damping >= 0.0 && damping <= kMostDamping)) {
    fail(where, "need a damping of 0 to 1000, got " + std::to_string(damping));
  }
  const double mean = mean_of(where, diagonal);
  const Floats64 blocks = make_floats(kSolveBlock * size);
  while (true) {
    parallel_tasks(size, options.threads, fill_row);
    for (int64_t i = 0; i < size; ++i) {
      const float known = diagonal[static_cast<size_t>(i)];
      const double element = known > 0.0f ? static_cast<double>(known) : mean;
      matrix[i * size + i] = static_cast<float>(element + damping * mean);
    }
    if (cholesky(matrix, size, blocks.get(), options)) {
      return damping;
    }
    if (damping >= kMostDamping) {
      fail(where, "need a positive semidefinite Hessian, got one that no damping makes definite");
    }
    const double next = damping < 1.0 ? damping + kDampingStep : damping * 10.0;
    damping = damping < 1.0 ? std::min(next, 1.0) : std::min(next, kMostDamping);
  }
}

void invert_lower(float* matrix, int64_t size, const FloatOptions& options) {
  const SolveKernels& kernels = solve_kernels(options.kernels);
  const int64_t lanes = kernels.lanes;
  const Floats64 blocks = make_floats(kSolveBlock * (size + kSolveBlock));
  for (int64_t first = 0; first < size; first += kSolveBlock) {
    const int64_t rows = std::min(kSolveBlock, size - first);
    const int64_t end = first + rows;
    pack_blocks(matrix, size, first, rows, end, blocks.get(), options.threads);
    const float* const diagonal = blocks.get() + first * kSolveBlock;
    parallel_panels(divided_up(end, lanes), options.threads, [&](PanelRange range) {
      const Tiles tiles(kernels);
      const auto column_of = [&](int64_t p) { return (range.first + p) * lanes; };
      const auto width_of = [&](int64_t p) { return std::min(lanes, end - column_of(p)); };
      for (int64_t p = 0; p < range.count; ++p) {
        std::fill_n(tiles.at(p), rows * lanes, 0.0f);
        for (int64_t r = std::max<int64_t>(column_of(p) - first, 0);
             r < std::min(rows, column_of(p) + lanes - first);
             ++r) {
          tiles.at(p)[r * lanes + first + r - column_of(p)] = 1.0f;
        }
      }
      for (int64_t d = column_of(0) / kSolveBlock * kSolveBlock; d < first; d += kSolveBlock) {
        for (int64_t p = 0; p < range.count && column_of(p) < d + kSolveBlock; ++p) {
          copy_panel(
              matrix + d * size + column_of(p), size, lanes, kSolveBlock, lanes, tiles.panel);
          kernels.subtract_product(
              blocks.get() + d * kSolveBlock, tiles.panel, rows, kSolveBlock, tiles.at(p));
        }
      }
      for (int64_t p = 0; p < range.count; ++p) {
        kernels.solve_lower(diagonal, rows, tiles.at(p));
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(
              tiles.at(p) + r * lanes, width_of(p), matrix + (first + r) * size + column_of(p));
        }
      }
    });
  }
}

double
inverse_factor(const Hessian& hessian, double damping, float* upper, const FloatOptions& options) {
  constexpr const char* kWhere = "factor";
  const FloatMode mode;
  const int64_t size = hessian.size;
  check_square(kWhere, hessian.data, size, options.threads);
  const float* const last = hessian.data + size * size - 1;
  std::vector<float> diagonal(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    diagonal[static_cast<size_t>(i)] = last[-(i * size + i)];
  }
  const double used = factor_damped(kWhere, upper, diagonal, damping, options, [&](int64_t i) {
    float* const row = upper + i * size;
    for (int64_t j = 0; j <= i; ++j) {
      row[j] = last[-(i * size + j)];
    }
    std::fill(row + i + 1, row + size, 0.0f);
  });
  invert_lower(upper, size, options);
  reverse(upper, size, options.threads);
  return used;
}

void hessian_of_factor(
    const float* upper,
    int64_t size,
    float* hessian,
    const FloatOptions& options) {
  const FloatMode mode;
  check_factor("hessian", upper, size, options.threads);
  const SolveKernels& kernels = solve_kernels(options.kernels);
  const int64_t lanes = kernels.lanes;
  std::copy_n(upper, size * size, hessian);
  reverse(hessian, size, options.threads);
  invert_lower(hessian, size, options);
  // L L^T by rows of blocks from below: no row is needed again once it has been replaced.
  const Floats64 blocks = make_floats(kSolveBlock * (size + kSolveBlock));
  for (int64_t first = (size - 1) / kSolveBlock * kSolveBlock; first >= 0; first -= kSolveBlock) {
    const int64_t rows = std::min(kSolveBlock, size - first);
    const int64_t end = first + rows;
    pack_blocks(hessian, size, first, rows, end, blocks.get(), options.threads);
    parallel_panels(divided_up(end, lanes), options.threads, [&](PanelRange range) {
      const Tiles tiles(kernels);
      for (int64_t p = range.first; p < range.first + range.count; ++p) {
        const int64_t column = p * lanes;
        const int64_t width = std::min(lanes, end - column);
        std::fill_n(tiles.data, rows * lanes, 0.0f);
        for (int64_t d = 0; d <= column; d += kSolveBlock) {
          const int64_t depth = std::min(kSolveBlock, end - d);
          const float* const block = blocks.get() + d * kSolveBlock;
          if (column >= first) {
            const float* const own = block + (column - first) * kSolveBlock;
            kernels.read_panel(own, kSolveBlock, width, depth, tiles.panel);
          } else {
            kernels.read_panel(hessian + column * size + d, size, width, depth, tiles.panel);
          }
          kernels.subtract_product(block, tiles.panel, rows, depth, tiles.data);
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t lane = 0; lane < width; ++lane) {
            hessian[(first + r) * size + column + lane] = -tiles.data[r * lanes + lane];
          }
        }
      }
    });
  }
  reverse(hessian, size, options.threads);
  parallel_tasks(size, options.threads, [&](int64_t i) {
    for (int64_t j = 0; j < i; ++j) {
      hessian[i * size + j] = hessian[j * size + i];
    }
  });
}

}  // namespace gemma_surgery::cpu
