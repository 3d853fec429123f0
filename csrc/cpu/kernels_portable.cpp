// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA portable
#define GS_PORTABLE 1
#include "cpu/table.h"

namespace gemma_surgery::cpu {

extern const ProductKernels k_portable_products;
extern const FloatKernels k_portable_float_kernels;
extern const SolveKernels k_portable_solve_kernels;
extern const Kernels k_portable_kernels;
const Kernels k_portable_kernels = {
    "portable",
    portable::decode_row,
    portable::embed_row,
    portable::encode_row,
    portable::gather,
    portable::row_square_sum,
    portable::add_row_squares,
    &k_portable_products,
    &k_portable_float_kernels,
    &k_portable_solve_kernels,
};

}  // namespace gemma_surgery::cpu
