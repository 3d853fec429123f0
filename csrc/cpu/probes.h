// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What this machine can do at most, which every kernel is held against: how fast memory is
// read, and how fast registers are multiplied and added.

#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// `kernels` chooses the instruction set, nullptr: the widest; `threads` 0: one per processor.

struct ReadPass {
  double seconds;
  uint32_t sum;  // of the buffer as little-endian 32-bit words: every byte was read
};

// Reads a buffer once, all threads together; its size is a multiple of 4096.
ReadPass read_pass(const uint8_t* data, int64_t size, int threads, const Kernels* kernels);

struct Rate {
  double per_second;  // operations of all threads together; a product and its sum are two
  const char* method;
};

// Float32 multiply-adds of registers.
Rate float_rate(int threads, const Kernels* kernels);

// Multiply-adds of 8-bit integers in registers, by the best instruction that there is.
Rate int8_rate(int threads, const Kernels* kernels);

}  // namespace gemma_surgery::cpu
