// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx2
#include "cpu/probe_loops.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_avx2_probes;
const ProbeLoops k_avx2_probes = {
    "avx2",
    avx2::read_sum,
    avx2::multiply_add,
    avx2::kMultiplyAddOperations,
    "AVX2 vfmadd",
    avx2::dot,
    avx2::kDotOperations,
    "AVX2 vpmaddubsw, vpmaddwd",
};

}  // namespace gemma_surgery::cpu
