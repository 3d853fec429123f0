// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA portable
#define GS_PORTABLE 1
#include "cpu/probe_loops.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_portable_probes;
const ProbeLoops k_portable_probes = {
    "portable",
    portable::read_sum,
    portable::multiply_add,
    portable::kMultiplyAddOperations,
    "multiply, add",
    portable::dot,
    portable::kDotOperations,
    "32-bit multiply, add",
};

}  // namespace gemma_surgery::cpu
