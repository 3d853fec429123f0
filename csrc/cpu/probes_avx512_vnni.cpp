// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#define GS_ISA avx512_vnni
#define GS_VNNI 1
#include "cpu/probe_loops.h"

namespace gemma_surgery::cpu {

extern const ProbeLoops k_avx512_vnni_probes;
const ProbeLoops k_avx512_vnni_probes = {
    "avx512_vnni",
    avx512_vnni::read_sum,
    avx512_vnni::multiply_add,
    avx512_vnni::kMultiplyAddOperations,
    "AVX-512 vfmadd",
    avx512_vnni::dot,
    avx512_vnni::kDotOperations,
    "AVX-512 vpdpbusd",
};

}  // namespace gemma_surgery::cpu
