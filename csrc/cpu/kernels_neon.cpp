// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon

#include "cpu/table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_neon_products;
extern const FloatKernels k_neon_float_kernels;
extern const SolveKernels k_neon_solve_kernels;
extern const Kernels k_neon_kernels;
const Kernels k_neon_kernels = {
    "neon",
    neon::decode_row,
    neon::embed_row,
    neon::encode_row,
    neon::gather,
    neon::row_square_sum,
    neon::add_row_squares,
    &k_neon_products,
    &k_neon_float_kernels,
    &k_neon_solve_kernels,
};

}  // namespace gemma_surgery::cpu
