// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/token_table.h"

#include <cstring>
#include <random>
#include <utility>

#include "tokenizer/utf8.h"

namespace gemma_surgery::tokenizer {

namespace {

template <typename Word>
uint64_t load(const char* from) {
  Word word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// A fresh seed per process: no file can be made of tokens that all collide.
uint64_t seed() {
  static const uint64_t value = [] {
    std::random_device source;
    return static_cast<uint64_t>(source()) << 32 | source();
  }();
  return value;
}

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
  return hash ^ hash >> 32;
}

uint32_t tag_of(uint64_t hash) {
  return static_cast<uint32_t>(hash >> 32);
}

}  // namespace

uint64_t TokenTable::hash(std::string_view text) {
  const char* at = text.data();
  size_t left = text.size();
  uint64_t value = mix(seed(), left);
  for (; left > 8; at += 8, left -= 8) {
    value = mix(value, load<uint64_t>(at));
  }
  uint64_t tail = 0;
  if (left >= 4) {
    tail = load<uint32_t>(at) << 32 | load<uint32_t>(at + left - 4);
  } else if (left > 0) {
    tail = static_cast<uint64_t>(static_cast<uint8_t>(at[0])) << 16 |
           static_cast<uint64_t>(static_cast<uint8_t>(at[left / 2])) << 8 |
           static_cast<uint8_t>(at[left - 1]);
  }
  return mix(mix(value, tail), 0xD6E8FEB86659FD93ull);
}

void TokenTable::expect_slot(uint64_t hash) const {
  __builtin_prefetch(slots_.data() + (hash & (slots_.size() - 1)));
}

void TokenTable::expect_text(uint64_t hash) const {
  const Slot& slot = slots_[hash & (slots_.size() - 1)];
  if (slot.tag == tag_of(hash) && slot.id >= 0) {
    __builtin_prefetch(arena_.data() + slot.text.start);
  }
}

size_t TokenTable::slot_of(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at].id >= 0; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.tag == tag_of(hash) && slot.text.size == text.size() &&
        std::memcmp(arena_.data() + slot.text.start, text.data(), text.size()) == 0) {
      break;
    }
  }
  return at;
}

int32_t TokenTable::find(std::string_view text, uint64_t hash) const {
  return slots_[slot_of(text, hash)].id;
}

bool TokenTable::add(std::string_view text, int32_t id) {
  if (id < 0 || exists(id) || text.size() >= kNone - arena_.size()) {
    return false;
  }
  if (num_tokens_ + num_tokens_ / 2 >= slots_.size()) {
    grow();
  }
  const uint64_t hash = TokenTable::hash(text);
  Slot& slot = slots_[slot_of(text, hash)];
  if (slot.id >= 0) {
    return false;
  }
  if (id >= num_ids()) {
    entries_.resize(static_cast<size_t>(id) + 1);
  }
  const Entry entry = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(text.size())};
  entries_[static_cast<size_t>(id)] = entry;
  slot = {tag_of(hash), id, entry};
  arena_.append(text);
  ++num_tokens_;
  return true;
}

void TokenTable::grow() {
  std::vector<Slot> slots(4 * slots_.size());
  const size_t mask = slots.size() - 1;
  for (const Slot& slot : slots_) {
    if (slot.id >= 0) {
      size_t at = hash(token(slot.id)) & mask;
      while (slots[at].id >= 0) {
        at = (at + 1) & mask;
      }
      slots[at] = slot;
    }
  }
  slots_ = std::move(slots);
}

void TokenTable::lengths(int32_t* out) const {
  for (int32_t id = 0; id < num_ids(); ++id) {
    int32_t count = 0;
    if (exists(id)) {
      for (const char c : token(id)) {
        count += (c & 0xC0) != 0x80;
      }
    }
    out[id] = count;
  }
}

void TokenTable::classes(const uint8_t* table, uint8_t* out) const {
  for (int32_t id = 0; id < num_ids(); ++id) {
    uint8_t found = 0;
    if (exists(id)) {
      const std::string_view text = token(id);
      for (const char* at = text.data(); at != text.data() + text.size();) {
        found |= table[next_code_point(at)];
      }
    }
    out[id] = found;
  }
}

}  // namespace gemma_surgery::tokenizer
