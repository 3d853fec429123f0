// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// A better scale and bias for affine groups: least squares on the codes that a pair gives,
// then on those of a narrower range (clipping the ends sharpens the middle), then once more.
//
// The search runs on measured values (measure.h), whose exact sums give both the next pair
// and its squared error, without another look at the values. A pair replaces the first one only
// when its error is smaller by more than those roundings can explain, or, where steps are too fine
// for that, when the values as stored say so: refining never makes a group worse.

#pragma once

#include "cpu/measure.h"

namespace gemma_surgery::cpu::GS_ISA {

// From 5 bits on the 16-bit values resolve too little of a step to compare pairs by.
constexpr int kMostBoundedBits = 4;

// |value - its 16-bit form|: half for rounding, the rest for float32 up to kFarthestBias.
constexpr double kMeasureError = 0.75;
constexpr double kFarthestBias = 1024.0;

// Codes that a first pair clips by more than this would make the sums overflow.
constexpr double kFarthestCode = 1.9;

template <Dtype kDtype>
GS_INLINE void round_to_stored(float* values) {
  for (int g = 0; g < kBlock; g += kWidth) {
    store(values + g, stored_value<kDtype>(stored_bits<kDtype>(load<Floats>(values + g))));
  }
}

// The least-squares pairs for summed codes: first the scale as stored, then the bias that
// suits it, as stored. Plain loops on doubles: they vectorize for every width.
template <Dtype kDtype>
static void solve(const Grid& grid, const Block& block, const Sums& sums, Pairs& pairs) {
  const double unit = grid.unit;
  const double count = grid.count;
  const double middle = grid.middle;
  for (int g = 0; g < kBlock; ++g) {
    const double code = grid.symmetric ? 0.0 : sums.code[g];
    const double spread = count * sums.square[g] - code * code;
    const double slope = (count * sums.product[g] - code * block.totals[g]) / (spread * unit);
    pairs.scales[g] = (float)(block.scales[g] * (spread > 0.0 ? slope : 1.0));
  }
  round_to_stored<kDtype>(pairs.scales);
  for (int g = 0; g < kBlock; ++g) {
    const double slope = (double)pairs.scales[g] * block.inverses[g];
    const double offset = (block.totals[g] * grid.step - slope * sums.code[g]) * grid.part;
    const double zero =
        grid.symmetric ? 0.0 : block.biases[g] + (middle + offset) * block.scales[g];
    pairs.biases[g] = (float)(zero - middle * (double)pairs.scales[g]);
  }
  round_to_stored<kDtype>(pairs.biases);
  for (int g = 0; g < kBlock; ++g) {
    const double ratio = (double)pairs.scales[g] * block.inverses[g];
    const double lift = ((double)pairs.biases[g] - block.biases[g]) * block.inverses[g];
    const double slope = ratio * unit;
    const double offset = (lift + middle * (ratio - 1.0)) * unit;
    pairs.slopes[g] = slope;
    pairs.offsets[g] = offset;
    pairs.errors[g] =
        block.squares[g] +
        slope * (slope * sums.square[g] + 2.0 * (offset * sums.code[g] - sums.product[g])) +
        offset * (count * offset - 2.0 * block.totals[g]);
  }
}

GS_INLINE void keep_better(const Pairs& pairs, Pairs& best) {
  for (int g = 0; g < kBlock; ++g) {
    const bool better = pairs.errors[g] < best.errors[g];
    best.scales[g] = better ? pairs.scales[g] : best.scales[g];
    best.biases[g] = better ? pairs.biases[g] : best.biases[g];
    best.errors[g] = better ? pairs.errors[g] : best.errors[g];
  }
}

// Marks the groups that `best` makes better, whatever the roundings of the measured values.
static void find_better(
    const Grid& grid,
    double slack,
    const Block& block,
    const Pairs& best,
    uint8_t* better) {
  const double farthest = (double)(2 * grid.half - 1) + kFarthestCode;
  for (int g = 0; g < kBlock; ++g) {
    const double low = (block.minima[g] - block.biases[g]) * block.inverses[g];
    const double high = (block.maxima[g] - block.biases[g]) * block.inverses[g];
    const double zero = block.biases[g] * block.inverses[g];
    const bool measurable = (low > -kFarthestCode) & (low < farthest) & (high > -kFarthestCode) &
                            (high < farthest) & (zero > -kFarthestBias) & (zero < kFarthestBias);
    const double least = best.errors[g] > 0.0 ? best.errors[g] : 0.0;
    const double bound = __builtin_sqrt(least) + slack;
    better[g] = measurable & (least < block.errors[g]) & (bound * bound <= block.errors[g]);
  }
}

// Where the sums cannot tell pairs apart: the errors of the values as stored.
static void
weigh(const float* values, int groups, const Grid& grid, const Pairs& pairs, double* errors) {
  const int group = (int)grid.count;
  for (int g = 0; g < groups; ++g) {
    const Fit fit = {pairs.scales[g], pairs.biases[g]};
    errors[g] = (double)group_error(values + g * group, group, fit, 2 * grid.half - 1);
  }
}

// Improves scratch.scales and scratch.biases in place; groups marked in `padded` are kept.
template <Dtype kDtype, int kGroup>
static void refine_groups(
    const Encoding& encoding,
    const float* values,
    int64_t groups,
    const uint8_t* padded,
    const Scratch& scratch) {
  const Grid grid = make_grid(encoding);
  const bool bounded = encoding.bits <= kMostBoundedBits;
  // (sqrt(E') + slack)^2 <= E leaves the true errors in the same order.
  const double slack = bounded ? 2.0 * kMeasureError * __builtin_sqrt(grid.count) : 0.0;
  Block block;
  Sums sums;
  Sums second;
  Pairs pairs;
  Pairs best;
  for (int64_t start = 0; start < groups; start += kBlock) {
    const int count = (int)(groups - start < kBlock ? groups - start : kBlock);
    const float* from = values + start * kGroup;
    measure_block<kGroup>(grid, from, count, scratch, start, block, sums, second);
    const auto solve_for = [&](const Sums& which, Pairs& out) {
      solve<kDtype>(grid, block, which, out);
      if (!bounded) {
        weigh(from, count, grid, out, out.errors);
      }
    };
    solve_for(sums, best);
    solve_for(second, pairs);
    keep_better(pairs, best);
    measure_again<kGroup>(grid, pairs, count, block, sums);
    solve_for(sums, pairs);
    keep_better(pairs, best);
    if (!bounded) {
      for (int g = 0; g < kBlock; ++g) {
        pairs.scales[g] = (float)block.scales[g];
        pairs.biases[g] = (float)block.biases[g];
      }
      weigh(from, count, grid, pairs, block.errors);
    }
    uint8_t better[kBlock];
    find_better(grid, slack, block, best, better);
    for (int g = 0; g < count; ++g) {
      if (better[g] && (!padded || !padded[start + g] || grid.symmetric)) {
        scratch.scales[start + g] = best.scales[g];
        scratch.biases[start + g] = best.biases[g];
        scratch.inverses[start + g] = inverse_of(best.scales[g]);
      }
    }
  }
}

template <Dtype kDtype>
static void refine_groups(
    const Encoding& encoding,
    const float* values,
    int64_t groups,
    const uint8_t* padded,
    const Scratch& scratch) {
  switch (encoding.group_size) {
    case 32:
      return refine_groups<kDtype, 32>(encoding, values, groups, padded, scratch);
    case 64:
      return refine_groups<kDtype, 64>(encoding, values, groups, padded, scratch);
    default:
      return refine_groups<kDtype, 128>(encoding, values, groups, padded, scratch);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
