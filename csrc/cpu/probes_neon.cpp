// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA neon
#include "cpu/probe_loops.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_neon_probes;
const ProbeLoops k_neon_probes = {
    "neon",
    neon::read_sum,
    neon::multiply_add,
    neon::kMultiplyAddOperations,
    "NEON fmla",
    neon::dot,
    neon::kDotOperations,
    "NEON sdot",
};

}  // namespace gemma_surgery::cpu
