// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One pass over a tokenizer.json: `model.vocab` into a table, `model.merges` into ids. Only
// what surely means one thing is understood; the rest is left to a slower, exact reader.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "tokenizer/token_table.h"

namespace gemma_surgery::tokenizer {

struct Span {
  size_t start = 0;
  size_t stop = 0;
};

struct Scan {
  TokenTable table;
  std::vector<int32_t> vocab_ids;  // in file order
  std::vector<int32_t> merges;     // left, right, result; in rank order
  bool merge_pairs = true;         // ["a", "b"] rather than "a b"
  Span vocab_span;                 // the bytes of the two values
  Span merges_span;
};

// Nothing where a key repeats or is escaped, a token or an id repeats, an id is not in
// 0...limit-1, a string is not UTF-8, a merge names or makes a stranger, merges come in both
// forms, or either value is missing. The text outside of the two spans is not checked.
std::optional<Scan> scan_tokenizer(std::string_view text, int64_t limit);

}  // namespace gemma_surgery::tokenizer
