// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Of each row of h: the logarithm of the sum of the exponentials of all its logits, and the
// logit of its target minus that; the logits themselves are never written.
//   logprob_blocks   largest logit and sum of exponentials of each block of 256 table rows,
//                    and the target's logit where the block holds it
//                    grid: x rows of h, one or four at a time, y blocks; 256 threads
//   logprob_combine  the blocks of one row of h; grid: x rows of h; one simdgroup
// A target of -1 has -infinity; any other outside the table makes both results NaN.
// Moves: the packed table once (from the cache for every further 4 rows of h), and 8 bytes for
// every 256 table rows and row of h.

#include "metal/head_block.h"

struct StoreLogit {
  threadgroup float* logits;

  void operator()(int vector, int local, float logit) const {
    logits[vector * kBlock + local] = logit;
  }
};

template <int kVectors>
inline void sum_block(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    const device int* targets,
    device float2* partials,
    device float* target_logits,
    constant HeadShape& shape,
    threadgroup float* logits,
    uint2 group,
    uint blocks,
    uint thread_index) {
  const uint simdgroup = thread_index / 32;
  const uint lane = thread_index % 32;
  const int first_vector = int(group.x) * kVectors;
  const StoreLogit store = {logits};
  block_logits<kVectors>(
      weight, scales, biases, h, shape, int(group.y), first_vector, simdgroup, lane, store);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int vector = first_vector + int(simdgroup);
  if (int(simdgroup) >= kVectors || vector >= shape.count) {
    return;
  }
  const threadgroup float* own = logits + int(simdgroup) * kBlock;
  const int first_row = int(group.y) * kBlock;
  const int filled = min(kBlock, shape.rows - first_row);
  float largest = -INFINITY;
  for (int i = int(lane); i < filled; i += 32) {
    largest = max(largest, own[i]);
  }
  largest = simd_max(largest);
  float sum = 0.0f;
  for (int i = int(lane); i < filled; i += 32) {
    sum += precise::exp(own[i] - largest);
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    float2 partial;
    partial.x = largest;
    partial.y = sum;
    partials[ulong(vector) * blocks + group.y] = partial;
    const int target = targets[vector] - first_row;
    if (target >= 0 && target < filled) {
      target_logits[vector] = own[target];
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(kBlockThreads)]] void logprob_blocks(
    const device X* h [[buffer(0)]],
    const device ushort* weight [[buffer(1)]],
    const device S* scales [[buffer(2)]],
    const device S* biases [[buffer(3)]],
    const device int* targets [[buffer(4)]],
    device float2* partials [[buffer(5)]],
    device float* target_logits [[buffer(6)]],
    constant HeadShape& shape [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float logits[kSeveral * kBlock];
  if (kSingle) {
    sum_block<1>(
        weight,
        scales,
        biases,
        h,
        targets,
        partials,
        target_logits,
        shape,
        logits,
        group,
        groups.y,
        thread_index);
  } else {
    sum_block<kSeveral>(
        weight,
        scales,
        biases,
        h,
        targets,
        partials,
        target_logits,
        shape,
        logits,
        group,
        groups.y,
        thread_index);
  }
}

[[kernel]] void logprob_combine(
    const device float2* partials [[buffer(0)]],
    const device float* target_logits [[buffer(1)]],
    const device int* targets [[buffer(2)]],
    device float* log_probs [[buffer(3)]],
    device float* log_sums [[buffer(4)]],
    constant int& blocks [[buffer(5)]],
    constant int& rows [[buffer(6)]],
    uint vector [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  const device float2* own = partials + ulong(vector) * ulong(blocks);
  float largest = -INFINITY;
  for (int i = int(lane); i < blocks; i += 32) {
    largest = max(largest, own[i].x);
  }
  largest = simd_max(largest);
  float sum = 0.0f;
  for (int i = int(lane); i < blocks; i += 32) {
    sum += own[i].y * precise::exp(own[i].x - largest);
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    const int target = targets[vector];
    const bool inside = target >= 0 && target < rows;
    const float log_sum = inside || target == -1 ? largest + precise::log(sum) : NAN;
    log_sums[vector] = log_sum;
    log_probs[vector] = (inside ? target_logits[vector] : -INFINITY) - log_sum;
  }
}
