// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The tokens of a vocabulary by id and by text: one arena of UTF-8 and an open-addressing
// table over it. About 50 bytes per token; Python's strings in a dictionary take four times that.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gemma_surgery::tokenizer {

class TokenTable {
 public:
  // One more than the highest id.
  int32_t num_ids() const {
    return static_cast<int32_t>(entries_.size());
  }

  bool exists(int32_t id) const {
    return id >= 0 && id < num_ids() && entries_[static_cast<size_t>(id)].start != kNone;
  }

  // The token of an id that exists.
  std::string_view token(int32_t id) const {
    const Entry& entry = entries_[static_cast<size_t>(id)];
    return {arena_.data() + entry.start, entry.size};
  }

  // The id of a token, -1 where there is none.
  int32_t find(std::string_view token) const {
    return find(token, hash(token));
  }

  // The same in three steps, so that many searches wait for memory together: `expect_slot`
  // for all of them, then `expect_text` for all of them, then `find`.
  static uint64_t hash(std::string_view token);
  void expect_slot(uint64_t hash) const;
  void expect_text(uint64_t hash) const;
  int32_t find(std::string_view token, uint64_t hash) const;

  // Adds a token; false if the id or the text is taken already, or the arena is full.
  bool add(std::string_view token, int32_t id);

  // Code points of every token, 0 where there is none: out[num_ids].
  void lengths(int32_t* out) const;

  // Union of `table[code point]` over every token, 0 where there is none: out[num_ids].
  void classes(const uint8_t* table, uint8_t* out) const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr size_t kFirstSlots = 512;

  struct Entry {
    uint32_t start = kNone;
    uint32_t size = 0;
  };
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;
    Entry text;
  };

  // The slot that holds a token, or the free one where it belongs.
  size_t slot_of(std::string_view token, uint64_t hash) const;
  void grow();

  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_ = std::vector<Slot>(kFirstSlots);  // a power of two, never full
  uint32_t num_tokens_ = 0;
};

}  // namespace gemma_surgery::tokenizer
