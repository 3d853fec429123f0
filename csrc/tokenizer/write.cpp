// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/write.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/json_text.h"

namespace gemma_surgery::tokenizer {

namespace {

// Escaped forms of the kept tokens, back to back: most are written several times.
class EscapedTokens {
 public:
  EscapedTokens(const TokenTable& table, const uint8_t* keep) : table_(table), keep_(keep) {
    starts_.resize(static_cast<size_t>(table.num_ids()) + 1);
    size_t size = 0;
    for (int32_t id = 0; id < table.num_ids(); ++id) {
      starts_[static_cast<size_t>(id)] = size;
      size += keep[id] && table.exists(id) ? escaped_size(table.token(id)) : 0;
    }
    starts_.back() = size;
    text_.resize(size);
    for (int32_t id = 0; id < table.num_ids(); ++id) {
      if (keep[id] && table.exists(id)) {
        write_escaped(table.token(id), text_.data() + starts_[static_cast<size_t>(id)]);
      }
    }
  }

  bool keeps(int32_t id) const {
    if (!table_.exists(id)) {
      throw std::invalid_argument("need ids with a token, got " + std::to_string(id));
    }
    return keep_[id] != 0;
  }

  size_t size(int32_t id) const {
    return starts_[static_cast<size_t>(id) + 1] - starts_[static_cast<size_t>(id)];
  }

  char* write(int32_t id, char* out) const {
    std::memcpy(out, text_.data() + starts_[static_cast<size_t>(id)], size(id));
    return out + size(id);
  }

 private:
  const TokenTable& table_;
  const uint8_t* keep_;
  std::vector<size_t> starts_;
  std::string text_;
};

char* write_text(std::string_view text, char* out) {
  std::memcpy(out, text.data(), text.size());
  return out + text.size();
}

}  // namespace

void write_vocab(
    const TokenTable& table,
    const int32_t* ids,
    int64_t count,
    const uint8_t* keep,
    const Allocate& allocate) {
  const EscapedTokens tokens(table, keep);
  size_t size = 2;
  int64_t written = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (tokens.keeps(ids[i])) {
      size += tokens.size(ids[i]) + std::to_string(ids[i]).size() + std::strlen("\"\":");
      ++written;
    }
  }
  size += static_cast<size_t>(written > 0 ? written - 1 : 0);
  char* out = allocate(size);
  *out++ = '{';
  bool first = true;
  for (int64_t i = 0; i < count; ++i) {
    if (tokens.keeps(ids[i])) {
      out = write_text(first ? "\"" : ",\"", out);
      out = tokens.write(ids[i], out);
      out = write_text("\":", out);
      out = write_text(std::to_string(ids[i]), out);
      first = false;
    }
  }
  *out = '}';
}

void write_merges(
    const TokenTable& table,
    const int32_t* merges,
    int64_t count,
    bool pairs,
    const uint8_t* keep,
    const Allocate& allocate) {
  const EscapedTokens tokens(table, keep);
  const std::string_view open = pairs ? "[\"" : "\"";
  const std::string_view middle = pairs ? "\",\"" : " ";
  const std::string_view close = pairs ? "\"]" : "\"";
  const auto keeps = [&](const int32_t* merge) {
    // All three are checked, whatever the first says.
    const bool left = tokens.keeps(merge[0]);
    const bool right = tokens.keeps(merge[1]);
    return tokens.keeps(merge[2]) && left && right;
  };
  size_t size = 2;
  int64_t written = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* merge = merges + 3 * i;
    if (keeps(merge)) {
      size += tokens.size(merge[0]) + tokens.size(merge[1]);
      ++written;
    }
  }
  size += static_cast<size_t>(written) * (open.size() + middle.size() + close.size());
  size += static_cast<size_t>(written > 0 ? written - 1 : 0);
  char* out = allocate(size);
  *out++ = '[';
  bool first = true;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* merge = merges + 3 * i;
    if (keeps(merge)) {
      if (!first) {
        *out++ = ',';
      }
      out = write_text(open, out);
      out = tokens.write(merge[0], out);
      out = write_text(middle, out);
      out = tokens.write(merge[1], out);
      out = write_text(close, out);
      first = false;
    }
  }
  *out = ']';
}

}  // namespace gemma_surgery::tokenizer
