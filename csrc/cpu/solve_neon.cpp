// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon

#include "cpu/solve_table.h"

namespace gemma_surgery::cpu {

extern const SolveKernels k_neon_solve_kernels;
const SolveKernels k_neon_solve_kernels = neon::solve_table("neon");

}  // namespace gemma_surgery::cpu
