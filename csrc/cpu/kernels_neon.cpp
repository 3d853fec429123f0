// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon

#include "cpu/table.h"

namespace gemma_surgery::cpu {

extern const Kernels k_neon_kernels;
const Kernels k_neon_kernels = {
    "neon",
    neon::decode_row,
    neon::encode_row,
    neon::gather,
    neon::row_square_sum,
    neon::add_row_squares,
};

}  // namespace gemma_surgery::cpu
