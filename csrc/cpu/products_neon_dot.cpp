// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon_dot

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_neon_dot_products;
const ProductKernels k_neon_dot_products = neon_dot::kProductKernels;

}  // namespace gemma_surgery::cpu
