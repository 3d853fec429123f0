// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The table of the solver's loops of the instruction set that this file is compiled for.

#pragma once

#include "cpu/solve_fit.h"
#include "cpu/solve_rounding.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr SolveKernels solve_table(const char* name) {
  return {
      name,
      kTileLanes,
      read_panel,
      write_panel,
      subtract_product,
      solve_lower,
      cholesky_block,
      round_run,
      improve_fit,
      pack_row_codes,
  };
}

}  // namespace gemma_surgery::cpu::GS_ISA
