// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Arithmetic of sizes for the entry points of the float kernels.

#pragma once

#include "cpu/types.h"

namespace gemma_surgery::cpu {

// Bytes of a floating point number.
inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::F32 ? 4 : 2;
}

inline int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace gemma_surgery::cpu
