// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512_vnni

#include "cpu/product_table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_avx512_vnni_products;
const ProductKernels k_avx512_vnni_products = avx512_vnni::kProductKernels;

}  // namespace gemma_surgery::cpu
