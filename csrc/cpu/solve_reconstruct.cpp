// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The weights of kept columns that stand in for all: X L L^T = W_lost H[lost, kept], where L is the
// factor of the damped H[kept, kept], and W' = W_kept + X. Rows of the weights are the lanes of
// panels that keep their negated right-hand sides, then Y = X L, then X.

#include <algorithm>

#include "cpu/checks.h"
#include "cpu/sizes.h"
#include "cpu/solve.h"
#include "cpu/solve_blocks.h"
#include "cpu/worker.h"

namespace gemma_surgery::cpu {

namespace {

constexpr const char* kWhere = "reconstruct";

// The columns that are not kept, in order.
std::vector<int64_t> lost_columns(const int32_t* kept, int64_t count, int64_t size) {
  check_indices(kWhere, "kept columns", kept, count, size);
  std::vector<bool> is_kept(static_cast<size_t>(size));
  for (int64_t i = 0; i < count; ++i) {
    if (kept[i] < 0 || is_kept[static_cast<size_t>(kept[i])]) {
      fail(
          kWhere,
          "need distinct kept columns of at least 0, got " + std::to_string(kept[i]) +
              " at position " + std::to_string(i));
    }
    is_kept[static_cast<size_t>(kept[i])] = true;
  }
  std::vector<int64_t> lost;
  for (int64_t column = 0; column < size; ++column) {
    if (!is_kept[static_cast<size_t>(column)]) {
      lost.push_back(column);
    }
  }
  return lost;
}

// One call: the factor, the panels and what they are made of.
struct Reconstruction {
  const SolveKernels& kernels;
  const FloatOptions& options;
  const Hessian& hessian;
  const int32_t* kept;
  int64_t count;
  const std::vector<int64_t>& lost;
  int64_t rows;
  const float* factor;   // [count, count], lower
  const float* weights;  // panels [lost, lanes]
  float* panels;         // panels [count, lanes]
  float* blocks;         // a row of blocks of the factor, of its transpose or of the Hessian
  float* corner;         // the block on its diagonal

  int64_t lost_count() const {
    return static_cast<int64_t>(lost.size());
  }

  float* panel(int64_t p, int64_t row) const {
    return panels + (p * count + row) * kernels.lanes;
  }

  // Calls subtract(block, d, depth, panel of the task) for each block of `depth_end` columns.
  template <typename Panel, typename Finish>
  void eliminate(
      int64_t first,
      int64_t width,
      int64_t begin,
      int64_t end,
      const Panel& source,
      const Finish& finish) const {
    parallel_panels(divided_up(rows, kernels.lanes), options.threads, [&](PanelRange range) {
      for (int64_t d = begin; d < end; d += kSolveBlock) {
        for (int64_t p = range.first; p < range.first + range.count; ++p) {
          kernels.subtract_product(
              blocks + (d - begin) * kSolveBlock,
              source(p, d),
              width,
              std::min(kSolveBlock, end - d),
              panel(p, first));
        }
      }
      for (int64_t p = range.first; p < range.first + range.count; ++p) {
        finish(panel(p, first));
      }
    });
  }

  // Less W_lost H[lost, kept], of the kept columns [first, first + width).
  void subtract_lost(int64_t first, int64_t width) const {
    parallel_tasks(width, options.threads, [&](int64_t r) {
      const float* const row = hessian.data + static_cast<int64_t>(kept[first + r]) * hessian.size;
      for (int64_t d = 0; d < lost_count(); ++d) {
        blocks[d / kSolveBlock * kBlockFloats + r * kSolveBlock + d % kSolveBlock] =
            row[lost[static_cast<size_t>(d)]];
      }
    });
    const auto source = [&](int64_t p, int64_t d) {
      return weights + (p * lost_count() + d) * kernels.lanes;
    };
    eliminate(first, width, 0, lost_count(), source, [](float*) {});
  }

  // Y: from the right-hand side what earlier columns say, then the block's own triangle.
  void solve_forward(int64_t first, int64_t width) const {
    pack_blocks(factor, count, first, width, first + width, blocks, options.threads);
    const auto source = [&](int64_t p, int64_t d) { return panel(p, d); };
    const float* const triangle = blocks + first * kSolveBlock;
    eliminate(first, width, 0, first, source, [&](float* tile) {
      kernels.solve_lower(triangle, width, tile);
    });
  }

  // X: the same with the transposed factor from the last column on.
  void solve_backward(int64_t first, int64_t width) const {
    const int64_t end = first + width;
    parallel_tasks(count - end, options.threads, [&](int64_t d) {
      float* const block = blocks + d / kSolveBlock * kBlockFloats + d % kSolveBlock;
      for (int64_t r = 0; r < width; ++r) {
        block[r * kSolveBlock] = factor[(end + d) * count + first + r];
      }
    });
    // Reversed, the upper triangle of the transpose is a lower one.
    for (int64_t r = 0; r < width; ++r) {
      for (int64_t d = 0; d <= r; ++d) {
        corner[r * kSolveBlock + d] = factor[(end - 1 - d) * count + end - 1 - r];
      }
    }
    const auto source = [&](int64_t p, int64_t d) { return panel(p, d); };
    eliminate(first, width, end, count, source, [&](float* tile) {
      reverse_rows(tile, width);
      kernels.solve_lower(corner, width, tile);
      reverse_rows(tile, width);
    });
  }

  void reverse_rows(float* tile, int64_t count_of_rows) const {
    const int64_t lanes = kernels.lanes;
    for (int64_t r = 0; r < count_of_rows / 2; ++r) {
      float* const row = tile + r * lanes;
      std::swap_ranges(row, row + lanes, tile + (count_of_rows - 1 - r) * lanes);
    }
  }
};

}  // namespace

double reconstruct(
    const float* weight,
    int64_t rows,
    const Hessian& hessian,
    const int32_t* kept,
    int64_t count,
    double damping,
    float* out,
    const FloatOptions& options) {
  const FloatMode mode;
  const int64_t size = hessian.size;
  check_square(kWhere, hessian.data, size, options.threads);
  check_finite(kWhere, "weight", weight, rows, size, options.threads);
  const std::vector<int64_t> lost = lost_columns(kept, count, size);
  const SolveKernels& kernels = solve_kernels(options.kernels);
  const int64_t lanes = kernels.lanes;
  const int64_t panels = divided_up(rows, lanes);
  const Floats64 factor = make_floats(count * count);
  std::vector<float> diagonal(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    diagonal[static_cast<size_t>(i)] = hessian.data[static_cast<int64_t>(kept[i]) * (size + 1)];
  }
  const double used =
      factor_damped(kWhere, factor.get(), diagonal, damping, options, [&](int64_t i) {
        const float* const row = hessian.data + static_cast<int64_t>(kept[i]) * size;
        for (int64_t j = 0; j <= i; ++j) {
          factor[static_cast<size_t>(i * count + j)] = row[kept[j]];
        }
      });
  const auto lost_count = static_cast<int64_t>(lost.size());
  const Floats64 weights = make_floats(panels * lost_count * lanes);
  const Floats64 solved = make_floats(panels * count * lanes);
  const Floats64 blocks =
      make_floats(divided_up(std::max(count, lost_count), kSolveBlock) * kBlockFloats);
  const Floats64 corner = make_floats(kBlockFloats);
  parallel_tasks(panels, options.threads, [&](int64_t p) {
    for (int64_t d = 0; d < lost_count; ++d) {
      float* const to = weights.get() + (p * lost_count + d) * lanes;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t row = p * lanes + lane;
        to[lane] = row < rows ? weight[row * size + lost[static_cast<size_t>(d)]] : 0.0f;
      }
    }
    std::fill_n(solved.get() + p * count * lanes, count * lanes, 0.0f);
  });
  const Reconstruction work = {
      kernels,
      options,
      hessian,
      kept,
      count,
      lost,
      rows,
      factor.get(),
      weights.get(),
      solved.get(),
      blocks.get(),
      corner.get()};
  for (int64_t first = 0; first < count; first += kSolveBlock) {
    const int64_t width = std::min(kSolveBlock, count - first);
    work.subtract_lost(first, width);
    work.solve_forward(first, width);
  }
  for (int64_t first = (count - 1) / kSolveBlock * kSolveBlock; first >= 0; first -= kSolveBlock) {
    work.solve_backward(first, std::min(kSolveBlock, count - first));
  }
  parallel_tasks(rows, options.threads, [&](int64_t row) {
    const float* const from = work.panel(row / lanes, 0) + row % lanes;
    for (int64_t k = 0; k < count; ++k) {
      out[row * count + k] = weight[row * size + kept[k]] - from[k * lanes];
    }
  });
  check_finite(kWhere, "solution", out, rows, count, options.threads);
  return used;
}

}  // namespace gemma_surgery::cpu
