// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#pragma once

#include "cpu/products.h"

namespace gemma_surgery::cpu {

// out[t, i] += bias[i] for `count` rows of `cols`, added in float32 and rounded.
void add_bias(
    const float* bias,
    int64_t cols,
    int64_t count,
    const MutableFloatRows& out,
    const ProductOptions& options);

}  // namespace gemma_surgery::cpu
