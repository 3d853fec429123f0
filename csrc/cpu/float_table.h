// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The table of float kernels of the instruction set that this file is compiled for.

#pragma once

#include "cpu/attention_block.h"
#include "cpu/attention_tile.h"
#include "cpu/dense_tile.h"
#include "cpu/rope_kernels.h"
#include "cpu/row_kernels.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr FloatKernels float_table(const char* name) {
  return {
      name,
      kTileLanes,
      dense_scratch,
      dense_tile,
      attention_scratch,
      attention_tile,
      attention_block_scratch,
      attention_block,
      attention_merge,
      rms_norm,
      layer_norm,
      gelu,
      rope_angles,
      rope_row,
  };
}

}  // namespace gemma_surgery::cpu::GS_ISA
