// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The kernel table of the instruction set that this file is compiled for.

#pragma once

#include "cpu/decode.h"
#include "cpu/embed.h"
#include "cpu/encode.h"
#include "cpu/encode_mx.h"
#include "cpu/squares.h"
#include "cpu/take.h"

namespace gemma_surgery::cpu::GS_ISA {

template <Dtype kDtype>
static EncodeResult encode_dense_row(const float* values, int64_t cols, uint8_t* out) {
  const int64_t overflow = encode_dense<kDtype>(values, cols, out);
  return {overflow, overflow < 0 ? Fault::None : Fault::OutOfRange};
}

static EncodeResult encode_row(
    const Encoding& encoding,
    const float* values,
    int64_t cols,
    const uint8_t* padded,
    bool refine,
    const Scratch& scratch,
    const EncodedRow& out) {
  const bool dense = encoding.mode == Mode::Dense;
  switch (encoding.dtype) {
    case Dtype::F32:
      return dense
                 ? encode_dense_row<Dtype::F32>(values, cols, out.weight)
                 : encode_affine<Dtype::F32>(encoding, values, cols, padded, refine, scratch, out);
    case Dtype::F16:
      return dense
                 ? encode_dense_row<Dtype::F16>(values, cols, out.weight)
                 : encode_affine<Dtype::F16>(encoding, values, cols, padded, refine, scratch, out);
    case Dtype::BF16:
      return dense
                 ? encode_dense_row<Dtype::BF16>(values, cols, out.weight)
                 : encode_affine<Dtype::BF16>(encoding, values, cols, padded, refine, scratch, out);
    default:
      return encoding.bits == 8 ? encode_mx<true>(encoding, values, cols, scratch, out)
                                : encode_mx<false>(encoding, values, cols, scratch, out);
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
