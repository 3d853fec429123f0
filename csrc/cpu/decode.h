// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One row of any encoding to float32. Affine values are code * scale + bias with one
// rounding of the product and one of the sum, both in float32.

#pragma once

#include "cpu/codes.h"
#include "cpu/floats.h"
#include "cpu/kernels.h"
#include "cpu/nibbles.h"

namespace gemma_surgery::cpu::GS_ISA {

template <Dtype kDtype>
static void decode_dense(const uint8_t* from, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(out + i, load_stored<kDtype>(from + i * kStoredBytes<kDtype>));
  }
  if (i < count) {
    uint8_t tail[4 * kWidth] = {};
    const size_t rest = (size_t)(count - i);
    __builtin_memcpy(tail, from + i * kStoredBytes<kDtype>, rest * kStoredBytes<kDtype>);
    const Floats values = load_stored<kDtype>(tail);
    __builtin_memcpy(out + i, &values, rest * sizeof(float));
  }
}

static void decode_dense(Dtype dtype, const uint8_t* from, int64_t count, float* out) {
  switch (dtype) {
    case Dtype::F16:
      return decode_dense<Dtype::F16>(from, count, out);
    case Dtype::BF16:
      return decode_dense<Dtype::BF16>(from, count, out);
    default:
      return decode_dense<Dtype::F32>(from, count, out);
  }
}

template <int kGroup>
static void
decode_affine(int bits, const uint8_t* packed, const Scratch& scratch, int64_t groups, float* out) {
  if constexpr (kNibbles) {
    if (bits == 4) {
      return decode_nibbles<kGroup>(packed, scratch.scales, scratch.biases, groups, out);
    }
  }
  unpack_codes(bits, packed, groups * kGroup, scratch.codes);
  for (int64_t g = 0; g < groups; ++g) {
    const Floats scale = splat(scratch.scales[g]);
    const Floats bias = splat(scratch.biases[g]);
    for (int i = 0; i < kGroup; i += kWidth) {
      const Floats code = to_floats(widen_bytes(scratch.codes + g * kGroup + i));
      store(out + g * kGroup + i, code * scale + bias);
    }
  }
}

static void decode_mx(
    const Encoding& encoding,
    const uint8_t* codes,
    const uint8_t* scales,
    int64_t groups,
    float* out) {
  const int group = encoding.group_size;
  for (int64_t g = 0; g < groups; ++g) {
    const float scale =
        encoding.mode == Mode::Nvfp4 ? from_e4m3(words(scales[g]))[0] : from_e8m0(scales[g]);
    for (int i = 0; i < group; i += kWidth) {
      const Words code = widen_bytes(codes + g * group + i);
      const Floats value = encoding.bits == 8 ? from_e4m3(code) : from_e2m1(code);
      store(out + g * group + i, value * scale);
    }
  }
}

static void decode_row(
    const Encoding& encoding,
    const uint8_t* weight,
    const uint8_t* scales,
    const uint8_t* biases,
    int64_t cols,
    const Scratch& scratch,
    float* out) {
  if (encoding.mode == Mode::Dense) {
    return decode_dense(encoding.dtype, weight, cols, out);
  }
  const int64_t groups = cols / encoding.group_size;
  if (encoding.dtype == Dtype::U8) {
    unpack_codes(encoding.bits, weight, cols, scratch.codes);
    return decode_mx(encoding, scratch.codes, scales, groups, out);
  }
  decode_dense(encoding.dtype, scales, groups, scratch.scales);
  decode_dense(encoding.dtype, biases, groups, scratch.biases);
  switch (encoding.group_size) {
    case 32:
      return decode_affine<32>(encoding.bits, weight, scratch, groups, out);
    case 64:
      return decode_affine<64>(encoding.bits, weight, scratch, groups, out);
    default:
      return decode_affine<128>(encoding.bits, weight, scratch, groups, out);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
