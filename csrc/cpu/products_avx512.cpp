// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_avx512_products;
const ProductKernels k_avx512_products = avx512::kProductKernels;

}  // namespace gemma_surgery::cpu
