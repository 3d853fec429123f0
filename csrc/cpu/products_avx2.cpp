// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx2

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_avx2_products;
const ProductKernels k_avx2_products = avx2::kProductKernels;

}  // namespace gemma_surgery::cpu
