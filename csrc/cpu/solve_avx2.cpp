// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx2

#include "cpu/solve_table.h"

namespace gemma_surgery::cpu {

extern const SolveKernels k_avx2_solve_kernels;
const SolveKernels k_avx2_solve_kernels = avx2::solve_table("avx2");

}  // namespace gemma_surgery::cpu
