// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512

#include "cpu/table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_avx512_products;
extern const FloatKernels k_avx512_float_kernels;
extern const SolveKernels k_avx512_solve_kernels;
extern const Kernels k_avx512_kernels;
const Kernels k_avx512_kernels = {
    "avx512",
    avx512::decode_row,
    avx512::embed_row,
    avx512::encode_row,
    avx512::gather,
    avx512::row_square_sum,
    avx512::add_row_squares,
    &k_avx512_products,
    &k_avx512_float_kernels,
    &k_avx512_solve_kernels,
};

}  // namespace gemma_surgery::cpu
