// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512

#include "cpu/float_table.h"

namespace gemma_surgery::cpu {

extern const FloatKernels k_avx512_float_kernels;
const FloatKernels k_avx512_float_kernels = avx512::float_table("avx512");

}  // namespace gemma_surgery::cpu
