// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512

#include "cpu/solve_table.h"

namespace gemma_surgery::cpu {

extern const SolveKernels k_avx512_solve_kernels;
const SolveKernels k_avx512_solve_kernels = avx512::solve_table("avx512");

}  // namespace gemma_surgery::cpu
