// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA portable
#define GS_PORTABLE 1

#include "cpu/solve_table.h"

namespace gemma_surgery::cpu {

extern const SolveKernels k_portable_solve_kernels;
const SolveKernels k_portable_solve_kernels = portable::solve_table("portable");

}  // namespace gemma_surgery::cpu
