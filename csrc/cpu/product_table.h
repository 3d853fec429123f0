// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The product loops of the instruction set that this file is compiled for.

#pragma once

#include "cpu/head_loops.h"
#include "cpu/product_rows.h"
#include "cpu/product_tile.h"

namespace gemma_surgery::cpu::GS_ISA {

constexpr ProductKernels kProductKernels = {
    kWidth,
    kTileCols,
    kTileDigits,
    split,
    arranged_bytes,
    arrange,
    rows,
    pack_panel,
    tile,
    write_floats,
    softcap,
    exp_sum};

}  // namespace gemma_surgery::cpu::GS_ISA
