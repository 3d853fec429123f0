// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// How the float kernels (attention.h, dense_product.h, row_ops.h) are run.
//
// float32, float16 and bfloat16 are read and written; arithmetic and sums are float32 and a
// result is rounded once, when it is stored. No result depends on the number of threads.

#pragma once

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

struct FloatOptions {
  const Kernels* kernels = nullptr;  // nullptr: the widest
  int threads = 0;                   // 0: one per processor
};

}  // namespace gemma_surgery::cpu
