// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA portable
#define GS_PORTABLE 1

#include "cpu/float_table.h"

namespace gemma_surgery::cpu {

extern const FloatKernels k_portable_float_kernels;
const FloatKernels k_portable_float_kernels = portable::float_table("portable");

}  // namespace gemma_surgery::cpu
