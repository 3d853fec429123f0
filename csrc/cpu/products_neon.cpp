// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_neon_products;
const ProductKernels k_neon_products = neon::kProductKernels;

}  // namespace gemma_surgery::cpu
