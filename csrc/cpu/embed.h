// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One row of an affine matrix, decoded, scaled and rounded to its stored form:
// out = round((code * scale + bias) * factor), each operation rounded to float32 first.

#pragma once

#include "cpu/codes.h"
#include "cpu/decode.h"
#include "cpu/floats.h"
#include "cpu/kernels.h"

namespace gemma_surgery::cpu::GS_ISA {

#if defined(__AVX512BW__)

// The 16 values of a group as stored, then one look-up per code.
template <Dtype kOut, int kGroup>
static void embed_nibbles(
    const uint8_t* packed,
    const Scratch& scratch,
    int64_t groups,
    float factor,
    uint8_t* out) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Words shifts = (lanes & 7u) << 2;
  // Four codes per 16-bit word, each word in four lanes; permutations ignore high bits.
  const __m512i half_lanes = _mm512_set_epi16(
      7,
      7,
      7,
      7,
      6,
      6,
      6,
      6,
      5,
      5,
      5,
      5,
      4,
      4,
      4,
      4,
      3,
      3,
      3,
      3,
      2,
      2,
      2,
      2,
      1,
      1,
      1,
      1,
      0,
      0,
      0,
      0);
  const __m512i half_shifts = _mm512_set1_epi64(0x000C000800040000);
  for (int64_t g = 0; g < groups; ++g) {
    const Floats values = to_floats(lanes) * splat(scratch.scales[g]) + splat(scratch.biases[g]);
    const Words stored = stored_bits<kOut>(values * splat(factor));
    const uint8_t* from = packed + g * kGroup / 2;
    uint8_t* to = out + g * kGroup * kStoredBytes<kOut>;
    if constexpr (kOut == Dtype::F32) {
      for (int i = 0; i < kGroup; i += 16) {
        const __m128i both = _mm_loadl_epi64((const __m128i*)(from + i / 2));
        const Words word =
            (Words)_mm512_permutexvar_epi32((__m512i)(lanes >> 3), _mm512_castsi128_si512(both));
        store(to + i * 4, _mm512_permutexvar_epi32((__m512i)(word >> shifts), (__m512i)stored));
      }
    } else {
      const __m512i table = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16((__m512i)stored));
      for (int i = 0; i < kGroup; i += 32) {
        const __m128i codes = _mm_loadu_si128((const __m128i*)(from + i / 2));
        const __m512i word = _mm512_permutexvar_epi16(half_lanes, _mm512_castsi128_si512(codes));
        store(to + i * 2, _mm512_permutexvar_epi16(_mm512_srlv_epi16(word, half_shifts), table));
      }
    }
  }
}

#endif

template <Dtype kOut, int kGroup>
static void embed_groups(
    int bits,
    const uint8_t* packed,
    const Scratch& scratch,
    int64_t groups,
    float factor,
    uint8_t* out) {
#if defined(__AVX512BW__)
  if (bits == 4) {
    return embed_nibbles<kOut, kGroup>(packed, scratch, groups, factor, out);
  }
#endif
  unpack_codes(bits, packed, groups * kGroup, scratch.codes);
  for (int64_t g = 0; g < groups; ++g) {
    const Floats scale = splat(scratch.scales[g]);
    const Floats bias = splat(scratch.biases[g]);
    for (int64_t i = g * kGroup; i < (g + 1) * kGroup; i += kWidth) {
      const Floats code = to_floats(widen_bytes(scratch.codes + i));
      const Floats value = (code * scale + bias) * splat(factor);
      store_stored<kOut>(out + i * kStoredBytes<kOut>, stored_bits<kOut>(value));
    }
  }
}

template <Dtype kOut>
static void embed_groups(
    const Encoding& encoding,
    const uint8_t* packed,
    const Scratch& scratch,
    int64_t groups,
    float factor,
    uint8_t* out) {
  switch (encoding.group_size) {
    case 32:
      return embed_groups<kOut, 32>(encoding.bits, packed, scratch, groups, factor, out);
    case 64:
      return embed_groups<kOut, 64>(encoding.bits, packed, scratch, groups, factor, out);
    default:
      return embed_groups<kOut, 128>(encoding.bits, packed, scratch, groups, factor, out);
  }
}

static void embed_row(
    const Encoding& encoding,
    const uint8_t* weight,
    const uint8_t* scales,
    const uint8_t* biases,
    int64_t cols,
    float factor,
    const Scratch& scratch,
    Dtype out_dtype,
    uint8_t* out) {
  const int64_t groups = cols / encoding.group_size;
  decode_dense(encoding.dtype, scales, groups, scratch.scales);
  decode_dense(encoding.dtype, biases, groups, scratch.biases);
  switch (out_dtype) {
    case Dtype::F16:
      return embed_groups<Dtype::F16>(encoding, weight, scratch, groups, factor, out);
    case Dtype::BF16:
      return embed_groups<Dtype::BF16>(encoding, weight, scratch, groups, factor, out);
    default:
      return embed_groups<Dtype::F32>(encoding, weight, scratch, groups, factor, out);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
