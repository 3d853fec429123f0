// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The elements of `model.merges` as ids. Merges are gathered in batches, so that the table is
// searched for many pieces at once: one by one, most of the time goes into waiting for memory.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/json_text.h"
#include "tokenizer/token_table.h"

namespace gemma_surgery::tokenizer {

class MergeReader {
 public:
  // Appends left, right and resulting id of every merge to `merges`.
  MergeReader(JsonCursor& cursor, const TokenTable& table, std::vector<int32_t>& merges)
      : cursor_(cursor), table_(table), merges_(merges) {}

  // Reads ["a", "b"], ... or "a b", ..., at least one, to behind the last; false where that is
  // not what the text says, or a token is unknown.
  bool read_pairs();
  bool read_joined();

 private:
  struct Pending {
    size_t start;  // in `pieces_`: left and right, back to back
    size_t left_size;
    size_t size;
    uint64_t left_hash;
    uint64_t right_hash;
    uint64_t made_hash;
    bool makes_the_same;  // as the one before
  };

  template <typename Read>
  bool take_gap(std::string_view& gap, const Read& read);
  bool add(std::string_view left, std::string_view right);
  bool resolve();

  JsonCursor& cursor_;
  const TokenTable& table_;
  std::vector<int32_t>& merges_;
  std::string left_;
  std::string right_;
  std::string pieces_;
  std::vector<Pending> pending_;
  // What stood between two strings last: it hardly ever changes within a file.
  std::string_view gap_within_;
  std::string_view gap_between_;
};

}  // namespace gemma_surgery::tokenizer
