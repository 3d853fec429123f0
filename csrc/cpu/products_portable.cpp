// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_PORTABLE
#define GS_ISA portable

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_portable_products;
const ProductKernels k_portable_products = portable::kProductKernels;

}  // namespace gemma_surgery::cpu
