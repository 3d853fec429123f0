// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The loops of one instruction set, see probe_loops.h.

#pragma once

#include <stdint.h>

namespace gemma_surgery::cpu {

struct ProbeLoops {
  const char* name;  // of the kernel table of the same instruction set
  uint32_t (*read_sum)(const uint8_t* data, int64_t size);
  float (*multiply_add)(int64_t rounds, float value);
  int64_t multiply_add_operations;  // of one round
  const char* multiply_add_method;
  int32_t (*dot)(int64_t rounds, int32_t value);
  int64_t dot_operations;
  const char* dot_method;
};

}  // namespace gemma_surgery::cpu
