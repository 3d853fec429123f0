// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon

#include "cpu/float_table.h"

namespace gemma_surgery::cpu {

extern const FloatKernels k_neon_float_kernels;
const FloatKernels k_neon_float_kernels = neon::float_table("neon");

}  // namespace gemma_surgery::cpu
