// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention, out[b, h, t] = sum over s of softmax(scale * q[b, h, t] . k[b, g, s]) * v[b, g, s]
// with g = h / (H / K): H query heads share K heads of keys and values.
//
// Numbers: float32 throughout, one rounding on store. A query that sees no key gives zeros.
//   T <= 16 Keys are taken in blocks of 512 from the first one that the query sees. A row of
//           the result depends on the keys that it sees and their order alone: not on T, on
//           keys before its window or on threads. Several tokens give the same bits as one
//           after the other.
//   T > 16  Tiles of queries and keys with a running maximum; memory does not depend on T and
//           S. Tiles that no query sees are skipped. A NaN or infinity among the values of a
//           key may reach queries of the same tile that do not see it.
// A NaN in a query reaches its own row, one in a key or value all rows that see it.

#pragma once

#include <cstdint>

#include "cpu/float_kernels.h"

namespace gemma_surgery::cpu {

// An array [batch, heads, tokens, dim] whose last axis is contiguous; strides in elements.
struct HeadsView {
  const uint8_t* data;
  Dtype dtype;  // F32, F16 or BF16
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

struct MutableHeadsView {
  uint8_t* data;
  Dtype dtype;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

// Which keys a query sees. Queries are the last T of the S keys where order matters, so
// query t stands at position S - T + t.
struct AttentionMask {
  enum class Kind : uint8_t {
    Full,     // all
    Causal,   // its own position and those before
    Boolean,  // what `allowed` says
  };
  Kind kind = Kind::Full;

  // Causal: only the last `window` of these, its own included; 0: all of them.
  int64_t window = 0;

  // Causal: int32 [T], the number of the image that token t belongs to, 0 for text. Tokens of
  // one image see each other in both directions, as far as the window allows; nullptr: none.
  const int32_t* image_blocks = nullptr;

  // Boolean: bytes [B, H, T, S], not 0 where a query sees a key; strides in bytes.
  const uint8_t* allowed = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t query_stride = 0;
  int64_t key_stride = 1;
};

struct AttentionShape {
  int64_t batch;     // B
  int64_t heads;     // H, a multiple of kv_heads
  int64_t kv_heads;  // K
  int64_t queries;   // T, at most S for a causal mask
  int64_t keys;      // S
  int64_t dim;       // D, a multiple of 8 from 8 to 512
};

void attention(
    const AttentionShape& shape,
    const HeadsView& q,
    const HeadsView& k,
    const HeadsView& v,
    float scale,
    const AttentionMask& mask,
    const MutableHeadsView& out,
    const FloatOptions& options);

}  // namespace gemma_surgery::cpu
