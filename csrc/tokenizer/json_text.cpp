// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/json_text.h"

#include <bit>
#include <cstring>

#include "tokenizer/utf8.h"

namespace gemma_surgery::tokenizer {

namespace {

constexpr uint64_t kOnes = 0x0101010101010101ull;
constexpr uint64_t kHighs = 0x8080808080808080ull;
constexpr uint64_t kSpaces = 0x2020202020202020ull;

uint64_t load8(const char* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

bool is_special(char c) {
  return c == '"' || c == '\\' || static_cast<uint8_t>(c) < 0x20;
}

// The high bit of every byte that is a quote, a backslash or below 0x20; bytes above the lowest
// one may be marked in error, since subtractions borrow.
uint64_t special_bytes(uint64_t word) {
  const uint64_t quote = word ^ (kOnes * '"');
  const uint64_t backslash = word ^ (kOnes * '\\');
  return (((quote - kOnes) & ~quote) | ((backslash - kOnes) & ~backslash) |
          ((word - kOnes * 0x20) & ~word)) &
         kHighs;
}

// The letter of the two-character escape, 0 where only \u00XX says it, 1 where none is needed.
char short_escape(char c) {
  switch (c) {
    case '"':
    case '\\':
      return c;
    case '\b':
      return 'b';
    case '\t':
      return 't';
    case '\n':
      return 'n';
    case '\f':
      return 'f';
    case '\r':
      return 'r';
    default:
      return static_cast<uint8_t>(c) < 0x20 ? 0 : 1;
  }
}

}  // namespace

void JsonCursor::skip_space() {
  while (at_ != end_) {
    while (end_ - at_ >= 8 && load8(at_) == kSpaces) {
      at_ += 8;
    }
    if (at_ == end_ || (*at_ != ' ' && *at_ != '\n' && *at_ != '\r' && *at_ != '\t')) {
      return;
    }
    ++at_;
  }
}

const char* JsonCursor::find_special(const char* from) const {
  if constexpr (std::endian::native == std::endian::little) {
    for (; end_ - from >= 8; from += 8) {
      if (const uint64_t found = special_bytes(load8(from))) {
        return from + std::countr_zero(found) / 8;
      }
    }
  }
  while (from != end_ && !is_special(*from)) {
    ++from;
  }
  return from;
}

bool JsonCursor::skip_string() {
  for (const char* found = find_special(at_ + 1); found != end_; found = find_special(found)) {
    if (*found == '"') {
      at_ = found + 1;
      return true;
    }
    // What is escaped may be a quote.
    if (*found != '\\' || end_ - found < 2) {
      return false;
    }
    found += 2;
  }
  return false;
}

bool JsonCursor::skip_value() {
  skip_space();
  int64_t depth = 0;
  do {
    skip_space();
    if (at_ == end_) {
      return false;
    }
    switch (*at_) {
      case '"':
        if (!skip_string()) {
          return false;
        }
        break;
      case '{':
      case '[':
        ++depth;
        ++at_;
        break;
      case '}':
      case ']':
        if (--depth < 0) {
          return false;
        }
        ++at_;
        break;
      case ',':
      case ':':
        if (depth == 0) {
          return false;
        }
        ++at_;
        break;
      default: {
        const char* start = at_;
        while (at_ != end_ && std::memchr(" \n\r\t\"{}[],:", *at_, 11) == nullptr) {
          ++at_;
        }
        if (at_ == start) {
          return false;
        }
      }
    }
  } while (depth > 0);
  return true;
}

bool JsonCursor::read_string(std::string& scratch, std::string_view& value) {
  if (!peek('"')) {
    return false;
  }
  const char* start = at_ + 1;
  const char* stop = find_special(start);
  if (stop == end_) {
    return false;
  }
  if (*stop == '"') {
    value = std::string_view(start, static_cast<size_t>(stop - start));
    at_ = stop + 1;
    return true;
  }
  scratch.clear();
  ++at_;
  while (true) {
    stop = find_special(at_);
    scratch.append(at_, static_cast<size_t>(stop - at_));
    at_ = stop;
    if (at_ == end_) {
      return false;
    }
    if (*at_ == '"') {
      ++at_;
      value = scratch;
      return true;
    }
    if (*at_ != '\\' || !unescape(scratch)) {
      return false;
    }
  }
}

bool JsonCursor::unescape(std::string& out) {
  if (end_ - at_ < 2) {
    return false;
  }
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  const char letter = at_[1];
  at_ += 2;
  if (letter != 'u') {
    const size_t index = kLetters.find(letter);
    if (index == std::string_view::npos) {
      return false;
    }
    out.push_back(kMeanings[index]);
    return true;
  }
  uint32_t point;
  if (!read_code_unit(point) || (point >= 0xDC00 && point < 0xE000)) {
    return false;
  }
  if (point >= 0xD800 && point < 0xDC00) {
    uint32_t low;
    if (end_ - at_ < 6 || at_[0] != '\\' || at_[1] != 'u') {
      return false;
    }
    at_ += 2;
    if (!read_code_unit(low) || low < 0xDC00 || low >= 0xE000) {
      return false;
    }
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  }
  append_code_point(point, out);
  return true;
}

bool JsonCursor::read_code_unit(uint32_t& unit) {
  if (end_ - at_ < 4) {
    return false;
  }
  unit = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = *at_++;
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) {
      return false;
    }
    unit = unit << 4 | static_cast<uint32_t>(digit);
  }
  return true;
}

bool JsonCursor::read_index(int64_t limit, int32_t& value) {
  skip_space();
  const char* start = at_;
  int64_t number = 0;
  while (at_ != end_ && *at_ >= '0' && *at_ <= '9') {
    number = number * 10 + (*at_++ - '0');
    if (number >= limit) {
      return false;
    }
  }
  value = static_cast<int32_t>(number);
  return at_ != start && (*start != '0' || at_ - start == 1);
}

size_t escaped_size(std::string_view text) {
  size_t size = text.size();
  for (const char c : text) {
    const char letter = short_escape(c);
    size += letter == 1 ? 0 : letter == 0 ? 5 : 1;
  }
  return size;
}

char* write_escaped(std::string_view text, char* out) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (const char c : text) {
    const char letter = short_escape(c);
    if (letter == 1) {
      *out++ = c;
    } else if (letter == 0) {
      std::memcpy(out, "\\u00", 4);
      out[4] = kHex[static_cast<uint8_t>(c) >> 4];
      out[5] = kHex[static_cast<uint8_t>(c) & 15];
      out += 6;
    } else {
      *out++ = '\\';
      *out++ = letter;
    }
  }
  return out;
}

}  // namespace gemma_surgery::tokenizer
