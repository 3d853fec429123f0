// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon_i8mm

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_neon_i8mm_products;
const ProductKernels k_neon_i8mm_products = neon_i8mm::kProductKernels;

}  // namespace gemma_surgery::cpu
