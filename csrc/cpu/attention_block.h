// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention for few queries, limited by the reading of keys and values. Every row takes its keys
// in blocks of kKeyBlock from the first one that it sees; each block has a maximum, a sum of
// weights and a weighted sum of values, and the blocks of a row are merged in order. Within a
// block a score is one sum over the head dimension, and values are added in the order of keys:
// nothing depends on the other rows, which only share the conversion of keys and values.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/sums.h"
#include "cpu/tile_product.h"
#include "cpu/transpose.h"

namespace gemma_surgery::cpu::GS_ISA {

// Keys or values that are turned to float32 at a time.
constexpr int64_t kKeyStep = 16;

constexpr int64_t kMaxFewTokens = kFewQueries;

static int64_t padded_dim(int64_t dim) {
  return (dim + kLanes - 1) / kLanes * kLanes;
}

static int64_t attention_block_scratch(int64_t heads, int64_t dim) {
  return heads * kMaxFewTokens * (padded_dim(dim) + kKeyBlock) +
         (kKeyStep + 4) * (padded_dim(dim) + 16);
}

// The keys that one token takes in this block.
struct BlockRange {
  int64_t begin;
  int64_t end;
};

static bool has_gaps(const Visibility& visible) {
  return visible.allowed != nullptr || visible.image_blocks != nullptr;
}

static bool sees(const Visibility& visible, int64_t head, int64_t token, int64_t key) {
  if (visible.allowed != nullptr) {
    return visible.allowed
               [head * visible.head_stride + token * visible.query_stride +
                key * visible.key_stride] != 0;
  }
  if (key < visible.last[token] || visible.image_blocks == nullptr) {
    return true;
  }
  const int32_t image = visible.image_blocks[token];
  return image > 0 && visible.image_blocks[key - visible.image_start] == image;
}

// Scores of `count` <= kKeyStep float32 keys, `stride` floats apart, for kRows queries.
template <int kRows>
static void score_keys(
    const float* const* q,
    const float* keys,
    int64_t stride,
    int64_t count,
    int64_t dim,
    float* const* scores) {
  for (int64_t key = 0; key < count; key += 4) {
    Floats sums[kRows][4];
    clear(sums);
    // Rows beyond `count` hold something else: their scores are not kept.
    const float* at = keys + key * stride;
    for (int64_t d = 0; d < dim; d += kWidth) {
      Floats values[4];
      for (int i = 0; i < 4; ++i) {
        values[i] = load<Floats>(at + i * stride + d);
      }
      for (int row = 0; row < kRows; ++row) {
        const Floats factor = load<Floats>(q[row] + d);
        for (int i = 0; i < 4; ++i) {
          sums[row][i] = multiply_add(factor, values[i], sums[row][i]);
        }
      }
    }
    const int64_t left = count - key < 4 ? count - key : 4;
    for (int row = 0; row < kRows; ++row) {
      float four[4];
      sum_four(sums[row], four);
      __builtin_memcpy(scores[row] + key, four, (size_t)left * sizeof(float));
    }
  }
}

// Adds `count` weighted values to kRows rows of kVectors vectors, in the order of keys.
template <int kRows, int kVectors>
GS_INLINE void add_columns(
    const float* const* weights,
    const float* values,
    int64_t stride,
    int64_t count,
    float* const* sums,
    int64_t column) {
  Floats block[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      block[i][v] = load<Floats>(sums[i] + column + v * kWidth);
    }
  }
  for (int64_t key = 0; key < count; ++key) {
    Floats row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = load<Floats>(values + key * stride + column + v * kWidth);
    }
    for (int i = 0; i < kRows; ++i) {
      const Floats weight = broadcast(weights[i][key]);
      for (int v = 0; v < kVectors; ++v) {
        block[i][v] = multiply_add(weight, row[v], block[i][v]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store(sums[i] + column + v * kWidth, block[i][v]);
    }
  }
}

template <int kRows>
static void add_value_rows(
    const float* const* weights,
    const float* values,
    int64_t stride,
    int64_t count,
    int64_t dim,
    float* const* sums) {
  constexpr int kVectors = kWidth == 16 ? 8 : 4;
  int64_t column = 0;
  for (; column + kVectors * kWidth <= dim; column += kVectors * kWidth) {
    add_columns<kRows, kVectors>(weights, values, stride, count, sums, column);
  }
  for (; column < dim; column += kWidth) {
    add_columns<kRows, 1>(weights, values, stride, count, sums, column);
  }
}

// Turns scores into weights; returns their maximum, kLowest where no key is seen, and their sum.
static void weigh_block(float* scores, int64_t count, float* top, float* total) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = count; i < padded; ++i) {
    scores[i] = -__builtin_inff();
  }
  Floats highest = broadcast(kLowest);
  for (int64_t i = 0; i < padded; i += kWidth) {
    highest = maximum(highest, load<Floats>(scores + i));
  }
  *top = highest_lane(highest);
  Floats sums[kLanes / kWidth] = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    for (int part = 0; part < kLanes / kWidth; ++part) {
      float* at = scores + i + part * kWidth;
      const Floats weight = exp2_of_negative(load<Floats>(at) - broadcast(*top));
      store(at, weight);
      sums[part] += weight;
    }
  }
  *total = sum_lanes(sums);
}

static void attention_block(
    const AttentionHeads& heads,
    int64_t tokens,
    int64_t block,
    const BlockSums& out,
    float* scratch) {
  const Visibility& visible = heads.visible;
  const int64_t dim = padded_dim(heads.dim);
  const int64_t stride = dim + 16;
  float* const queries = scratch;
  float* const scores = queries + heads.heads * kMaxFewTokens * dim;
  float* const rows = scores + heads.heads * kMaxFewTokens * kKeyBlock;
  auto sums_of = [&](int64_t head, int64_t t) {
    return out.data + ((head * tokens + t) * out.blocks + block) * out.stride;
  };
  auto index_of = [&](int64_t head, int64_t t) { return head * kMaxFewTokens + t; };

  BlockRange ranges[kMaxFewTokens];
  int64_t begin = INT64_MAX;
  int64_t end = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t first = visible.first[t] + block * kKeyBlock;
    const int64_t last = visible.reach[t];
    ranges[t] = {first, last - first < kKeyBlock ? last : first + kKeyBlock};
    if (first < ranges[t].end) {
      begin = first < begin ? first : begin;
      end = ranges[t].end > end ? ranges[t].end : end;
    }
  }
  fill_zeros(rows, (kKeyStep + 4) * stride);
  for (int64_t head = 0; head < heads.heads; ++head) {
    for (int64_t t = 0; t < tokens; ++t) {
      float* q = queries + index_of(head, t) * dim;
      fill_zeros(q, dim);
      const uint8_t* from = heads.q.data + head * heads.q_head_stride + t * heads.q.stride;
      read_floats(heads.q.dtype, from, heads.dim, q);
      for (int64_t d = 0; d < dim; d += kWidth) {
        store(q + d, load<Floats>(q + d) * broadcast(heads.factor));
      }
      fill_zeros(sums_of(head, t), out.stride);
      sums_of(head, t)[0] = kLowest;
    }
  }
  const bool gaps = has_gaps(visible);
  for (int64_t key = begin; key < end; key += kKeyStep) {
    const int64_t size = end - key < kKeyStep ? end - key : kKeyStep;
    for (int64_t j = 0; j < size; ++j) {
      read_row_ahead<2 * kKeyStep>(heads.k, key + j, end, heads.dim, rows + j * stride);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t from = key > ranges[t].begin ? key : ranges[t].begin;
      const int64_t to = key + size < ranges[t].end ? key + size : ranges[t].end;
      for (int64_t head = 0; head < heads.heads && from < to; head += 2) {
        const int64_t pair = heads.heads - head < 2 ? 1 : 2;
        const float* q[2];
        float* score[2];
        for (int64_t i = 0; i < pair; ++i) {
          q[i] = queries + index_of(head + i, t) * dim;
          score[i] = scores + index_of(head + i, t) * kKeyBlock + (from - ranges[t].begin);
        }
        const float* keys = rows + (from - key) * stride;
        if (pair == 2) {
          score_keys<2>(q, keys, stride, to - from, dim, score);
        } else {
          score_keys<1>(q, keys, stride, to - from, dim, score);
        }
        for (int64_t i = 0; i < pair && gaps; ++i) {
          for (int64_t at = from; at < to; ++at) {
            if (!sees(visible, head + i, t, at)) {
              score[i][at - from] = -__builtin_inff();
            }
          }
        }
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t count = ranges[t].end - ranges[t].begin;
    for (int64_t head = 0; head < heads.heads && count > 0; ++head) {
      float* sums = sums_of(head, t);
      weigh_block(scores + index_of(head, t) * kKeyBlock, count, &sums[0], &sums[1]);
    }
  }
  for (int64_t key = begin; key < end; key += kKeyStep) {
    const int64_t size = end - key < kKeyStep ? end - key : kKeyStep;
    for (int64_t j = 0; j < size; ++j) {
      read_row_ahead<2 * kKeyStep>(heads.v, key + j, end, heads.dim, rows + j * stride);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t from = key > ranges[t].begin ? key : ranges[t].begin;
      const int64_t to = key + size < ranges[t].end ? key + size : ranges[t].end;
      for (int64_t head = 0; head < heads.heads && from < to;) {
        const float* weights[2];
        float* sums[2];
        for (int64_t i = 0; i < 2 && head + i < heads.heads; ++i) {
          weights[i] = scores + index_of(head + i, t) * kKeyBlock + (from - ranges[t].begin);
          sums[i] = sums_of(head + i, t) + 16;
        }
        const float* values = rows + (from - key) * stride;
        if (gaps) {
          // A value that is not seen is left out, as zero times infinity is not zero.
          for (int64_t at = from; at < to; ++at) {
            const float* weight = weights[0] + (at - from);
            if (sees(visible, head, t, at)) {
              add_value_rows<1>(&weight, values + (at - from) * stride, stride, 1, dim, sums);
            }
          }
          head += 1;
        } else if (head + 2 <= heads.heads) {
          add_value_rows<2>(weights, values, stride, to - from, dim, sums);
          head += 2;
        } else {
          add_value_rows<1>(weights, values, stride, to - from, dim, sums);
          head += 1;
        }
      }
    }
  }
}

static void attention_merge(
    const float* blocks,
    int64_t count,
    int64_t stride,
    int64_t dim,
    Dtype dtype,
    uint8_t* out) {
  float top = kLowest;
  for (int64_t i = 0; i < count; ++i) {
    top = blocks[i * stride] > top ? blocks[i * stride] : top;
  }
  float sums[kMaxHeadDim + kLanes] = {};
  float total = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* block = blocks + i * stride;
    const float weight = exp2_of_negative(block[0] - top);
    total += block[1] * weight;
    for (int64_t d = 0; d < dim; d += kWidth) {
      const Floats sum = load<Floats>(sums + d);
      store(sums + d, multiply_add(load<Floats>(block + 16 + d), broadcast(weight), sum));
    }
  }
  const float share = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t d = 0; d < dim; d += kWidth) {
    store(sums + d, load<Floats>(sums + d) * broadcast(share));
  }
  write_floats(dtype, sums, dim, out);
}

}  // namespace gemma_surgery::cpu::GS_ISA
