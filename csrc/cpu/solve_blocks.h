// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What the parts of the solver share: packed blocks, how panels are dealt out to threads, and the
// factorization in place.

#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/float_kernels.h"
#include "cpu/solve_kernels.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

inline constexpr int64_t kBlockFloats = kSolveBlock * kSolveBlock;

struct FreeFloats {
  void operator()(float* pointer) const {
    ::operator delete(pointer, std::align_val_t(64));
  }
};
using Floats64 = std::unique_ptr<float[], FreeFloats>;

// Aligned to 64 bytes, not initialized.
Floats64 make_floats(int64_t count);

// The loops of a table; nullptr: the widest.
const SolveKernels& solve_kernels(const Kernels* kernels);

// Panels [first, first + count) of one task.
struct PanelRange {
  int64_t first;
  int64_t count;
};

// Most panels of one task: a packed block is read from memory once for all of them.
inline constexpr int64_t kMostPanels = 4;

// Runs work(PanelRange) over all panels, several at once where there are enough for all threads.
template <typename Work>
void parallel_panels(int64_t panels, int threads, const Work& work) {
  const int64_t workers = threads > 0 ? threads : available_threads();
  const int64_t fair = panels / (4 * workers);
  const int64_t each = fair < 1 ? 1 : fair > kMostPanels ? kMostPanels : fair;
  parallel_tasks((panels + each - 1) / each, threads, [&](int64_t task) {
    const int64_t first = task * each;
    work(PanelRange{first, panels - first < each ? panels - first : each});
  });
}

// Refuses what is not finite; `what` names it.
void check_finite(
    const char* where,
    const char* what,
    const float* data,
    int64_t rows,
    int64_t cols,
    int threads);

// Refuses a matrix [size, size] without elements, or with some that are not finite.
void check_square(const char* where, const float* data, int64_t size, int threads);

// Refuses besides what has no positive diagonal.
void check_factor(const char* where, const float* data, int64_t size, int threads);

// Rows [first, first + rows) of the lower triangle up to column `depth`, by blocks of columns:
// block b holds [rows, kSolveBlock] from column b * kSolveBlock on.
void pack_blocks(
    const float* matrix,
    int64_t size,
    int64_t first,
    int64_t rows,
    int64_t depth,
    float* blocks,
    int threads);

// Factors the damped matrix that `fill_row(i)` writes the rows of, up to the diagonal, in place;
// where that fails it is written again and damped more. Returns the damping that worked.
double factor_damped(
    const char* where,
    float* matrix,
    const std::vector<float>& diagonal,
    double damping,
    const FloatOptions& options,
    const Task& fill_row);

// The lower triangle to its inverse, in place; zeros above are kept.
void invert_lower(float* matrix, int64_t size, const FloatOptions& options);

}  // namespace gemma_surgery::cpu
