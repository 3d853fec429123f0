// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What the compiler's thread-sanitizer instrumentation calls before every access, in place of
// its runtime library, and the rounding that it leaves to another.

#include <cstdint>
#include <cstring>

#include "scheduler.h"

#define HOOKS(size)                                   \
  void __tsan_read##size(void* at) {                  \
    msl::access(static_cast<char*>(at), size, false); \
  }                                                   \
  void __tsan_write##size(void* at) {                 \
    msl::access(static_cast<char*>(at), size, true);  \
  }                                                   \
  void __tsan_unaligned_read##size(void* at) {        \
    msl::access(static_cast<char*>(at), size, false); \
  }                                                   \
  void __tsan_unaligned_write##size(void* at) {       \
    msl::access(static_cast<char*>(at), size, true);  \
  }                                                   \
  void __tsan_read_write##size(void* at) {            \
    msl::access(static_cast<char*>(at), size, false); \
    msl::access(static_cast<char*>(at), size, true);  \
  }                                                   \
  void __tsan_unaligned_read_write##size(void* at) {  \
    msl::access(static_cast<char*>(at), size, false); \
    msl::access(static_cast<char*>(at), size, true);  \
  }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void* __tsan_memcpy(void* to, const void* from, size_t size) {
  msl::access(static_cast<const char*>(from), size, false);
  msl::access(static_cast<char*>(to), size, true);
  return std::memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
  msl::access(static_cast<const char*>(from), size, false);
  msl::access(static_cast<char*>(to), size, true);
  return std::memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
  msl::access(static_cast<char*>(to), size, true);
  return std::memset(to, value, size);
}

// Rounding to bfloat16, which the compiler leaves to its runtime library: the 16 bits are
// handed back in the low half of a float register.
float msl_to_bfloat(float value) __asm__("__truncsfbf2");
float msl_to_bfloat(float value) {
  auto bits = __builtin_bit_cast(uint32_t, value);
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  bits = is_nan ? 0x7FC00000u : bits + 0x7FFFu + ((bits >> 16) & 1u);
  return __builtin_bit_cast(float, bits >> 16);
}
}
