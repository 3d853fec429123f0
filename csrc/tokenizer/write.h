// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The vocabulary and the merges of a pruned tokenizer, as compact JSON.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "tokenizer/token_table.h"

namespace gemma_surgery::tokenizer {

// Called once with the exact size; returns the memory to fill.
using Allocate = std::function<char*(size_t)>;

// Writes {"token":id,...} for the kept of `ids`, in their order.
//
// keep: [table.num_ids()], not zero for tokens that stay.
// Throws std::invalid_argument where an id has no token.
void write_vocab(
    const TokenTable& table,
    const int32_t* ids,
    int64_t count,
    const uint8_t* keep,
    const Allocate& allocate);

// Writes [["a","b"],...] or ["a b",...] for the merges whose three tokens are kept.
//
// merges: [count, 3], left, right and resulting id.
void write_merges(
    const TokenTable& table,
    const int32_t* merges,
    int64_t count,
    bool pairs,
    const uint8_t* keep,
    const Allocate& allocate);

}  // namespace gemma_surgery::tokenizer
