// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx2

#include "cpu/table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_avx2_products;
extern const FloatKernels k_avx2_float_kernels;
extern const SolveKernels k_avx2_solve_kernels;
extern const Kernels k_avx2_kernels;
const Kernels k_avx2_kernels = {
    "avx2",
    avx2::decode_row,
    avx2::embed_row,
    avx2::encode_row,
    avx2::gather,
    avx2::row_square_sum,
    avx2::add_row_squares,
    &k_avx2_products,
    &k_avx2_float_kernels,
    &k_avx2_solve_kernels,
};

}  // namespace gemma_surgery::cpu
