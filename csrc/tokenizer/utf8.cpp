// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/utf8.h"

namespace gemma_surgery::tokenizer {

bool is_utf8(std::string_view text) {
  const auto* at = reinterpret_cast<const uint8_t*>(text.data());
  const auto* end = at + text.size();
  while (at != end) {
    const uint8_t lead = *at++;
    if (lead < 0x80) {
      continue;
    }
    const int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (lead < 0xC2 || lead > 0xF4 || end - at < more) {
      return false;
    }
    const uint8_t lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (*at < lowest || *at > highest) {
      return false;
    }
    for (int i = 1; i < more; ++i) {
      if ((at[i] & 0xC0) != 0x80) {
        return false;
      }
    }
    at += more;
  }
  return true;
}

void append_code_point(uint32_t point, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (point < 0x80) {
    put(point);
    return;
  }
  if (point < 0x800) {
    put(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      put(0xE0 | point >> 12);
    } else {
      put(0xF0 | point >> 18);
      put(0x80 | (point >> 12 & 0x3F));
    }
    put(0x80 | (point >> 6 & 0x3F));
  }
  put(0x80 | (point & 0x3F));
}

}  // namespace gemma_surgery::tokenizer
