// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// MLX's packing: one little-endian stream per row, code k at bits [k * b, k * b + b).
// Eight codes are b bytes, so they move between their packed form and one byte each by
// three halvings of a 64-bit word; the loops are plain and vectorize for every width.

#pragma once

#include "cpu/simd.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are little-endian");

namespace gemma_surgery::cpu::GS_ISA {

template <int kBits>
constexpr uint64_t kHalf4 = (1ull << (4 * kBits)) - 1;
template <int kBits>
constexpr uint64_t kHalf2 = ((1ull << (2 * kBits)) - 1) * 0x0000000100000001ull;
template <int kBits>
constexpr uint64_t kHalf1 = ((1ull << kBits) - 1) * 0x0001000100010001ull;

template <int kBits>
GS_INLINE uint64_t spread(uint64_t x) {
  x = (x & kHalf4<kBits>) | ((x & (kHalf4<kBits> << (4 * kBits))) << (32 - 4 * kBits));
  x = (x & kHalf2<kBits>) | ((x & (kHalf2<kBits> << (2 * kBits))) << (16 - 2 * kBits));
  return (x & kHalf1<kBits>) | ((x & (kHalf1<kBits> << kBits)) << (8 - kBits));
}

template <int kBits>
GS_INLINE uint64_t squeeze(uint64_t x) {
  x = (x & kHalf1<kBits>) | ((x >> (8 - kBits)) & (kHalf1<kBits> << kBits));
  x = (x & kHalf2<kBits>) | ((x >> (16 - 2 * kBits)) & (kHalf2<kBits> << (2 * kBits)));
  return (x & kHalf4<kBits>) | ((x >> (32 - 4 * kBits)) & (kHalf4<kBits> << (4 * kBits)));
}

// `count` is a multiple of 8; reads exactly count * kBits / 8 bytes.
template <int kBits>
static void unpack_codes(const uint8_t* packed, int64_t count, uint8_t* codes) {
  if constexpr (kBits == 8) {
    __builtin_memcpy(codes, packed, (size_t)count);
  } else if constexpr (kBits == 4 || kBits == 2) {
    for (int64_t i = 0; i < count / 8; ++i) {
      uint64_t x = 0;
      if constexpr (kBits == 4) {
        x = load<uint32_t>(packed + 4 * i);
      } else {
        x = load<uint16_t>(packed + 2 * i);
      }
      store(codes + 8 * i, spread<kBits>(x));
    }
  } else {
    for (int64_t i = 0; i < count / 8; ++i) {
      uint64_t x = 0;
      __builtin_memcpy(&x, packed + kBits * i, kBits);
      store(codes + 8 * i, spread<kBits>(x));
    }
  }
}

// `count` is a multiple of 8; writes exactly count * kBits / 8 bytes.
template <int kBits>
static void pack_codes(const uint8_t* codes, int64_t count, uint8_t* packed) {
  if constexpr (kBits == 8) {
    __builtin_memcpy(packed, codes, (size_t)count);
  } else if constexpr (kBits == 4 || kBits == 2) {
    for (int64_t i = 0; i < count / 8; ++i) {
      const uint64_t x = squeeze<kBits>(load<uint64_t>(codes + 8 * i));
      if constexpr (kBits == 4) {
        store(packed + 4 * i, (uint32_t)x);
      } else {
        store(packed + 2 * i, (uint16_t)x);
      }
    }
  } else {
    for (int64_t i = 0; i < count / 8; ++i) {
      const uint64_t x = squeeze<kBits>(load<uint64_t>(codes + 8 * i));
      __builtin_memcpy(packed + kBits * i, &x, kBits);
    }
  }
}

GS_INLINE void unpack_codes(int bits, const uint8_t* packed, int64_t count, uint8_t* codes) {
  switch (bits) {
    case 2:
      return unpack_codes<2>(packed, count, codes);
    case 3:
      return unpack_codes<3>(packed, count, codes);
    case 4:
      return unpack_codes<4>(packed, count, codes);
    case 5:
      return unpack_codes<5>(packed, count, codes);
    case 6:
      return unpack_codes<6>(packed, count, codes);
    default:
      return unpack_codes<8>(packed, count, codes);
  }
}

GS_INLINE void pack_codes(int bits, const uint8_t* codes, int64_t count, uint8_t* packed) {
  switch (bits) {
    case 2:
      return pack_codes<2>(codes, count, packed);
    case 3:
      return pack_codes<3>(codes, count, packed);
    case 4:
      return pack_codes<4>(codes, count, packed);
    case 5:
      return pack_codes<5>(codes, count, packed);
    case 6:
      return pack_codes<6>(codes, count, packed);
    default:
      return pack_codes<8>(codes, count, packed);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
