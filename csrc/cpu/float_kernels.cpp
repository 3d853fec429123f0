// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/float_kernels.h"

#include "cpu/dispatch.h"
#include "cpu/float_functions.h"

namespace gemma_surgery::cpu {

const FloatKernels& float_kernels(const Kernels* kernels) {
  return *(kernels != nullptr ? *kernels : find_kernels("")).floats;
}

}  // namespace gemma_surgery::cpu
