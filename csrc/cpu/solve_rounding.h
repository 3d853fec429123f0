// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Columns rounded one after the other, each error passed on to the columns behind it.

#pragma once

#include "cpu/affine_fit.h"
#include "cpu/codes.h"
#include "cpu/solve_tile.h"

namespace gemma_surgery::cpu::GS_ISA {

// Codes of one column, and its errors over the diagonal element of U.
GS_INLINE void round_column(const RoundRun& run, int64_t j) {
  const float* const fit = run.fits + run.columns[j] / run.group_size * 3 * kTileLanes;
  const Floats inverse_diagonal = broadcast(1.0f / run.a[j * kSolveBlock + j]);
  for (int v = 0; v < kTileLanes; v += kWidth) {
    const Floats scale = load<Floats>(fit + v);
    const Floats bias = load<Floats>(fit + kTileLanes + v);
    const Floats inverse = load<Floats>(fit + 2 * kTileLanes + v);
    const Floats value = load<Floats>(run.tile + j * kTileLanes + v);
    const Floats code = code_of(value, bias, inverse, run.last_code);
    const Floats rounded = (code + 8388608.0f) - 8388608.0f;
    const Floats error = value - (rounded * scale + bias);
    store(run.errors + j * kTileLanes + v, error * inverse_diagonal);
    narrow_bytes(run.codes + j * kTileLanes + v, code_bits(code));
  }
}

static void round_run(const RoundRun& run) {
  for (int64_t s = run.first; s < run.end; s += kSolveStrip) {
    const int64_t end = s + kSolveStrip < run.end ? s + kSolveStrip : run.end;
    subtract_product(
        run.a + s * kSolveBlock + run.first,
        run.errors + run.first * kTileLanes,
        end - s,
        s - run.first,
        run.tile + s * kTileLanes);
    for (int64_t j = s; j < end; ++j) {
      round_column(run, j);
      for (int64_t m = j + 1; m < end; ++m) {
        add_row(
            -run.a[m * kSolveBlock + j], run.errors + j * kTileLanes, run.tile + m * kTileLanes);
      }
    }
  }
}

static void pack_row_codes(int bits, const uint8_t* codes, int64_t count, uint8_t* packed) {
  pack_codes(bits, codes, count, packed);
}

}  // namespace gemma_surgery::cpu::GS_ISA
