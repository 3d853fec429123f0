// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512
#include "cpu/probe_loops.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_avx512_probes;
const ProbeLoops k_avx512_probes = {
    "avx512",
    avx512::read_sum,
    avx512::multiply_add,
    avx512::kMultiplyAddOperations,
    "AVX-512 vfmadd",
    avx512::dot,
    avx512::kDotOperations,
    "AVX-512 vpmaddubsw, vpmaddwd",
};

}  // namespace gemma_surgery::cpu
