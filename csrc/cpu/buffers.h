// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Working memory that a thread keeps for its next call: the hot loops allocate nothing.

#pragma once

#include <cstdint>

namespace gemma_surgery::cpu {

// One buffer per purpose: the thread that starts a product also takes part in it.
enum class Purpose : uint8_t { Operand, Panel, Partial, Tile, Count };

// At least `bytes` bytes aligned to 64; what an earlier call of the same purpose got on
// this thread is no longer valid. Throws std::bad_alloc.
uint8_t* thread_buffer(Purpose purpose, int64_t bytes);

template <typename T>
T* thread_buffer(Purpose purpose, int64_t count) {
  return reinterpret_cast<T*>(thread_buffer(purpose, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace gemma_surgery::cpu
