// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/buffers.h"

#include <array>
#include <memory>
#include <new>

namespace gemma_surgery::cpu {

namespace {

constexpr auto kAlignment = std::align_val_t(64);

struct FreeAligned {
  void operator()(void* pointer) const {
    ::operator delete(pointer, kAlignment);
  }
};

struct Buffer {
  std::unique_ptr<void, FreeAligned> storage;
  int64_t capacity = 0;
};

}  // namespace

uint8_t* thread_buffer(Purpose purpose, int64_t bytes) {
  thread_local std::array<Buffer, static_cast<size_t>(Purpose::Count)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(purpose)];
  if (bytes > buffer.capacity) {
    buffer.storage.reset();
    buffer.capacity = 0;
    buffer.storage.reset(::operator new(static_cast<size_t>(bytes), kAlignment));
    buffer.capacity = bytes;
  }
  return static_cast<uint8_t*>(buffer.storage.get());
}

}  // namespace gemma_surgery::cpu
