// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gemma_surgery::tokenizer {

// True for well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

// The code point at `at`, which is moved behind it. The text must be well-formed.
inline uint32_t next_code_point(const char*& at) {
  const auto byte = [&] { return static_cast<uint8_t>(*at++); };
  const uint32_t lead = byte();
  if (lead < 0x80) {
    return lead;
  }
  const int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  uint32_t point = lead & (0x3Fu >> more);
  for (int i = 0; i < more; ++i) {
    point = point << 6 | (byte() & 0x3Fu);
  }
  return point;
}

void append_code_point(uint32_t point, std::string& out);

}  // namespace gemma_surgery::tokenizer
