// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// JSON text, read in place and written compactly. Reading never looks beyond `end`, and says
// false where the text is not JSON; it builds no tree.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace gemma_surgery::tokenizer {

class JsonCursor {
 public:
  explicit JsonCursor(std::string_view text)
      : begin_(text.data()), at_(text.data()), end_(text.data() + text.size()) {}

  size_t offset() const {
    return static_cast<size_t>(at_ - begin_);
  }

  // The text between an earlier state of this cursor and this one.
  std::string_view text_since(const JsonCursor& earlier) const {
    return {earlier.at_, static_cast<size_t>(at_ - earlier.at_)};
  }

  // Skips white space, then `wanted` if it comes next.
  bool take(char wanted) {
    if (!peek(wanted)) {
      return false;
    }
    ++at_;
    return true;
  }

  // Skips `wanted` if these very bytes come next.
  bool take_text(std::string_view wanted) {
    if (static_cast<size_t>(end_ - at_) < wanted.size() ||
        std::memcmp(at_, wanted.data(), wanted.size()) != 0) {
      return false;
    }
    at_ += wanted.size();
    return true;
  }

  bool peek(char wanted) {
    skip_space();
    return at_ != end_ && *at_ == wanted;
  }

  void skip_space();

  // Skips white space and one value. Only strings and the depth of brackets are followed: text
  // that is not JSON may pass, JSON is always skipped exactly.
  bool skip_value();

  // Reads a string: in place, or unescaped into `scratch` where it has escapes. Refuses control
  // characters, unknown escapes and surrogates that stand alone; bytes above 0x7F are not checked.
  bool read_string(std::string& scratch, std::string_view& value);

  // Reads 0, 1, ... below `limit`, in digits alone.
  bool read_index(int64_t limit, int32_t& value);

 private:
  bool skip_string();
  const char* find_special(const char* from) const;
  bool unescape(std::string& out);
  bool read_code_unit(uint32_t& unit);

  const char* begin_;
  const char* at_;
  const char* end_;
};

// Bytes of a string's escaped form, without the quotes.
size_t escaped_size(std::string_view text);

// Writes the escaped form, without the quotes, and returns its end. Escaped are the quote, the
// backslash and control characters, those with a short form by it: as orjson does.
char* write_escaped(std::string_view text, char* out);

}  // namespace gemma_surgery::tokenizer
