// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The k largest logits of each row of h, largest first, ties by the lower row of the table,
// NaN above everything; the logits themselves are never written.
//   topk_blocks  the best min(k, 256) of each block of 256 table rows
//                grid: x rows of h, one or four at a time, y blocks; 256 threads
//   topk_merge   the best k of each 1024 candidates, until one list is left
//                grid: x chunks, y rows of h; 256 threads
//   topk_write   values, and rows as original ids; grid: threads over count * k
// A candidate is one ulong, logit above, complement of the row below: comparing candidates is
// comparing integers. Limits: k at most 256, rows below 2^31.
// Moves: the packed table once (from the cache for every further 4 rows of h), and 8 * k bytes
// for every 256 table rows and row of h.

#include "metal/head_block.h"

constant int kChoices [[function_constant(3)]];
constant bool kMapped [[function_constant(4)]];

constant constexpr int kChunkKeys = 1024;

// Order of floats as order of integers; -0 equals 0.
inline ulong key_of(float logit, int row) {
  const uint bits = as_type<uint>(logit == 0.0f ? 0.0f : logit);
  uint order = (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
  order = isnan(logit) ? 0xFFFFFFFFu : order;
  return ulong(order) << 32 | ulong(~uint(row));
}

inline float logit_of(ulong key) {
  const uint order = uint(key >> 32);
  const uint bits = (order & 0x80000000u) != 0u ? order & 0x7FFFFFFFu : ~order;
  return order == 0xFFFFFFFFu ? NAN : as_type<float>(bits);
}

// Sorts `lists` lists of kLength keys, largest first; called by all threads, with a barrier
// before it, and it ends with one.
template <int kLength>
inline void sort_keys(threadgroup ulong* keys, int lists, uint thread_index) {
  for (int size = 2; size <= kLength; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = int(thread_index); pair < lists * kLength / 2; pair += kBlockThreads) {
        const int low = 2 * pair - pair % stride;
        const ulong a = keys[low];
        const ulong b = keys[low + stride];
        const bool descends = (low % kLength & size) == 0;
        if (descends ? a < b : a > b) {
          keys[low] = b;
          keys[low + stride] = a;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}

// The largest key of one simdgroup's lanes, in every lane.
inline ulong simd_max_key(ulong key) {
  const uint high = simd_max(uint(key >> 32));
  const uint low = simd_max(uint(key >> 32) == high ? uint(key) : 0u);
  return ulong(high) << 32 | ulong(low);
}

struct StoreKey {
  threadgroup ulong* keys;
  int first_row;

  void operator()(int vector, int local, float logit) const {
    keys[vector * kBlock + local] = key_of(logit, first_row + local);
  }
};

template <int kVectors>
inline void choose_in_block(
    const device ushort* weight,
    const device S* scales,
    const device S* biases,
    const device X* h,
    device ulong* candidates,
    constant HeadShape& shape,
    threadgroup ulong* keys,
    uint2 group,
    uint blocks,
    uint thread_index) {
  const uint simdgroup = thread_index / 32;
  const uint lane = thread_index % 32;
  const int first_vector = int(group.x) * kVectors;
  for (int i = int(thread_index); i < kVectors * kBlock; i += kBlockThreads) {
    keys[i] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const StoreKey store = {keys, int(group.y) * kBlock};
  block_logits<kVectors>(
      weight, scales, biases, h, shape, int(group.y), first_vector, simdgroup, lane, store);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int kept = min(kChoices, kBlock);
  if (kChoices == 1) {
    const int vector = int(simdgroup);
    if (vector < kVectors && first_vector + vector < shape.count) {
      ulong best = 0;
      for (int i = int(lane); i < kBlock; i += 32) {
        const ulong key = keys[vector * kBlock + i];
        best = key > best ? key : best;
      }
      best = simd_max_key(best);
      if (lane == 0) {
        candidates[ulong(first_vector + vector) * blocks + group.y] = best;
      }
    }
    return;
  }
  sort_keys<kBlock>(keys, kVectors, thread_index);
  for (int i = int(thread_index); i < kVectors * kept; i += kBlockThreads) {
    const int vector = i / kept;
    if (first_vector + vector < shape.count) {
      const ulong list = ulong(first_vector + vector) * blocks + group.y;
      candidates[list * ulong(kept) + i % kept] = keys[vector * kBlock + i % kept];
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(kBlockThreads)]] void topk_blocks(
    const device X* h [[buffer(0)]],
    const device ushort* weight [[buffer(1)]],
    const device S* scales [[buffer(2)]],
    const device S* biases [[buffer(3)]],
    device ulong* candidates [[buffer(4)]],
    constant HeadShape& shape [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup ulong keys[kSeveral * kBlock];
  if (kSingle) {
    choose_in_block<1>(
        weight, scales, biases, h, candidates, shape, keys, group, groups.y, thread_index);
  } else {
    choose_in_block<kSeveral>(
        weight, scales, biases, h, candidates, shape, keys, group, groups.y, thread_index);
  }
}

[[kernel, max_total_threads_per_threadgroup(kBlockThreads)]] void topk_merge(
    const device ulong* candidates [[buffer(0)]],
    device ulong* merged [[buffer(1)]],
    constant int& length [[buffer(2)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup ulong keys[kChunkKeys];
  const int first = int(group.x) * kChunkKeys;
  const device ulong* from = candidates + ulong(group.y) * ulong(length);
  for (int i = int(thread_index); i < kChunkKeys; i += kBlockThreads) {
    keys[i] = first + i < length ? from[first + i] : 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sort_keys<kChunkKeys>(keys, 1, thread_index);
  device ulong* to = merged + (ulong(group.y) * groups.x + group.x) * ulong(kChoices);
  for (int i = int(thread_index); i < kChoices; i += kBlockThreads) {
    to[i] = keys[i];
  }
}

[[kernel]] void topk_write(
    const device ulong* keys [[buffer(0)]],
    const device int* original_ids [[buffer(1)]],
    device float* values [[buffer(2)]],
    device int* ids [[buffer(3)]],
    constant int& size [[buffer(4)]],
    uint position [[thread_position_in_grid]]) {
  if (int(position) >= size) {
    return;
  }
  const ulong key = keys[position];
  const int row = int(~uint(key));
  values[position] = logit_of(key);
  ids[position] = kMapped ? original_ids[row] : row;
}
