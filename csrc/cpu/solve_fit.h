// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// A better scale and bias for one group of a panel, where errors of columns
// count differently: weighted least squares on the codes that a pair gives,
// again and again, from the pair as it is and from ranges of which more and
// more of the ends is cut off. A pair replaces another only where its error is
// smaller. Rows are lanes, so no sum is split among them.

#pragma once

#include "cpu/affine_fit.h"
#include "cpu/solve_tile.h"

namespace gemma_surgery::cpu::GS_ISA {

// Shares of the range that searches begin with, beside the pair as it is.
constexpr float kFitRanges[] = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f};
constexpr int kFitRounds = 3;

// Scale and bias of one vector of rows, and what codes for them add up to:
// weighted sums over the group of squared errors, centred codes, their squares,
// values and products.
struct PairFit {
  Floats scale;
  Floats bias;
  Floats error;
  Floats code;
  Floats square;
  Floats value;
  Floats product;
};

GS_INLINE PairFit
fit_of(const FitRun& run, const float* tile, float middle, Floats scale, Floats bias) {
  const Floats inverse = inverse_of(scale);
  PairFit fit = {};
  for (int64_t j = 0; j < run.size; ++j) {
    const Floats value = load<Floats>(tile + j * kTileLanes);
    const Floats weight = broadcast(run.weights[j]);
    const Floats code = code_of(value, bias, inverse, run.last_code);
    const Floats rounded = (code + 8388608.0f) - 8388608.0f;
    const Floats error = value - (rounded * scale + bias);
    // Around the middle, squares of codes lose less.
    const Floats centred = rounded - middle;
    const Floats weighted = weight * centred;
    fit.error = fused(weight * error, error, fit.error);
    fit.code = fit.code + weighted;
    fit.square = fused(weighted, centred, fit.square);
    fit.value = fused(weight, value, fit.value);
    fit.product = fused(weighted, value, fit.product);
  }
  fit.scale = scale;
  fit.bias = bias;
  return fit;
}

template <Dtype kDtype>
GS_INLINE Floats stored(Floats value) {
  return stored_value<kDtype>(stored_bits<kDtype>(value));
}

// The weighted least-squares pair, as stored, for the codes of another.
template <Dtype kDtype>
GS_INLINE PairFit solved(const FitRun& run, const float* tile, float middle, const PairFit& fit) {
  if (run.is_symmetric) {
    const Floats slope = fit.product / fit.square;
    const Floats scale = stored<kDtype>(select(fit.square > splat(0.0f), slope, fit.scale));
    return fit_of(run, tile, middle, scale, -middle * scale);
  }
  const Floats spread = fit.square - fit.code * fit.code;
  const Floats slope = (fit.product - fit.code * fit.value) / spread;
  const Floats scale = stored<kDtype>(select(spread > splat(0.0f), slope, fit.scale));
  const Floats bias = stored<kDtype>(fit.value - scale * (fit.code + middle));
  return fit_of(run, tile, middle, scale, bias);
}

template <Dtype kDtype>
static void improve_lanes(const FitRun& run, const float* tile, float* fit) {
  const float middle = (run.last_code + 1.0f) * 0.5f;
  Floats low = load<Floats>(tile);
  Floats high = low;
  for (int64_t j = 1; j < run.size; ++j) {
    low = minimum(low, load<Floats>(tile + j * kTileLanes));
    high = maximum(high, load<Floats>(tile + j * kTileLanes));
  }
  const PairFit given =
      fit_of(run, tile, middle, load<Floats>(fit), load<Floats>(fit + kTileLanes));
  Floats best_scale = given.scale;
  Floats best_bias = given.bias;
  Floats best_error = given.error;
  const auto search = [&](PairFit pair) {
    for (int round = 0; round < kFitRounds; ++round) {
      pair = solved<kDtype>(run, tile, middle, pair);
      // That of an infinite pair is never finite, and so never smaller.
      const Ints better = pair.error < best_error;
      best_scale = select(better, pair.scale, best_scale);
      best_bias = select(better, pair.bias, best_bias);
      best_error = select(better, pair.error, best_error);
    }
  };
  search(given);
  for (const float share : kFitRanges) {
    const Floats scale = (high - low) * share / run.last_code;
    const Floats least = (low + high) * 0.5f - (high - low) * share * 0.5f;
    search(fit_of(run, tile, middle, scale, run.is_symmetric ? -middle * scale : least));
  }
  store(fit, best_scale);
  store(fit + kTileLanes, best_bias);
  store(fit + 2 * kTileLanes, inverse_of(best_scale));
}

template <Dtype kDtype>
static void improve_panel(const FitRun& run) {
  for (int v = 0; v < kTileLanes; v += kWidth) {
    improve_lanes<kDtype>(run, run.tile + v, run.fit + v);
    const Floats scale = load<Floats>(run.fit + v);
    const Floats bias = load<Floats>(run.fit + kTileLanes + v);
    store_stored<kDtype>(run.scales + v * kStoredBytes<kDtype>, stored_bits<kDtype>(scale));
    store_stored<kDtype>(run.biases + v * kStoredBytes<kDtype>, stored_bits<kDtype>(bias));
  }
}

static void improve_fit(const FitRun& run) {
  switch (run.dtype) {
    case Dtype::F16:
      return improve_panel<Dtype::F16>(run);
    case Dtype::BF16:
      return improve_panel<Dtype::BF16>(run);
    default:
      return improve_panel<Dtype::F32>(run);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
