// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx2

#include "cpu/float_table.h"

namespace gemma_surgery::cpu {

extern const FloatKernels k_avx2_float_kernels;
const FloatKernels k_avx2_float_kernels = avx2::float_table("avx2");

}  // namespace gemma_surgery::cpu
