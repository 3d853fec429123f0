// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/scan.h"

#include <string>
#include <utility>

#include "tokenizer/json_text.h"
#include "tokenizer/merge_reader.h"
#include "tokenizer/utf8.h"

namespace gemma_surgery::tokenizer {

namespace {

// Offsets in the arena are 32 bits wide.
constexpr size_t kMaxBytes = size_t{1} << 31;

// Indented, a merge takes about 50 bytes; compact, about 15.
constexpr size_t kBytesPerMerge = 48;

// Calls `read_value(key)` for every member; false where it does, or the text is no object.
template <typename ReadValue>
bool read_object(JsonCursor& cursor, std::string& scratch, const ReadValue& read_value) {
  if (!cursor.take('{')) {
    return false;
  }
  if (cursor.take('}')) {
    return true;
  }
  do {
    std::string_view key;
    if (!cursor.read_string(scratch, key) || !cursor.take(':') || !read_value(key)) {
      return false;
    }
  } while (cursor.take(','));
  return cursor.take('}');
}

class Scanner {
 public:
  Scanner(std::string_view text, int64_t limit) : text_(text), limit_(limit) {}

  bool run() {
    JsonCursor cursor(text_);
    const bool whole = read_object(cursor, key_, [&](std::string_view key) {
      if (!is_plain(key)) {
        return false;
      }
      if (key != "model") {
        return cursor.skip_value();
      }
      return !std::exchange(seen_model_, true) && read_model(cursor);
    });
    return whole && seen_vocab_ && seen_merges_ && (!postponed_ || read_postponed());
  }

  Scan scan;

 private:
  // An escaped key could spell `vocab` in another way.
  bool is_plain(std::string_view key) const {
    return key.data() != key_.data();
  }

  bool read_model(JsonCursor& cursor) {
    return read_object(cursor, key_, [&](std::string_view key) {
      if (!is_plain(key)) {
        return false;
      }
      if (key == "vocab") {
        return !std::exchange(seen_vocab_, true) && read_vocab(cursor);
      }
      if (key != "merges") {
        return cursor.skip_value();
      }
      // Merges that come first wait for their tokens.
      postponed_ = !seen_vocab_;
      return !std::exchange(seen_merges_, true) &&
             (postponed_ ? skip_merges(cursor) : read_merges(cursor, 0));
    });
  }

  bool read_vocab(JsonCursor& cursor) {
    cursor.skip_space();
    scan.vocab_span.start = cursor.offset();
    const bool whole = read_object(cursor, left_, [&](std::string_view token) {
      int32_t id;
      if (!is_utf8(token) || !cursor.read_index(limit_, id) || !scan.table.add(token, id)) {
        return false;
      }
      scan.vocab_ids.push_back(id);
      return true;
    });
    scan.vocab_span.stop = cursor.offset();
    return whole && !scan.vocab_ids.empty();
  }

  bool skip_merges(JsonCursor& cursor) {
    cursor.skip_space();
    scan.merges_span.start = cursor.offset();
    const bool skipped = cursor.skip_value();
    scan.merges_span.stop = cursor.offset();
    return skipped;
  }

  bool read_postponed() {
    const Span span = scan.merges_span;
    JsonCursor cursor(text_.substr(span.start, span.stop - span.start));
    return read_merges(cursor, span.start) && scan.merges_span.stop == span.stop;
  }

  bool read_merges(JsonCursor& cursor, size_t offset) {
    cursor.skip_space();
    scan.merges_span.start = offset + cursor.offset();
    if (!cursor.take('[')) {
      return false;
    }
    if (!cursor.take(']')) {
      scan.merge_pairs = cursor.peek('[');
      scan.merges.reserve((text_.size() - scan.merges_span.start) / kBytesPerMerge * 3);
      MergeReader reader(cursor, scan.table, scan.merges);
      if (!(scan.merge_pairs ? reader.read_pairs() : reader.read_joined()) || !cursor.take(']')) {
        return false;
      }
    }
    scan.merges_span.stop = offset + cursor.offset();
    return true;
  }

  std::string_view text_;
  int64_t limit_;
  bool seen_model_ = false;
  bool seen_vocab_ = false;
  bool seen_merges_ = false;
  bool postponed_ = false;
  std::string key_;
  std::string left_;
};

}  // namespace

std::optional<Scan> scan_tokenizer(std::string_view text, int64_t limit) {
  if (text.size() > kMaxBytes || limit > INT32_MAX) {
    return std::nullopt;
  }
  Scanner scanner(text, limit);
  if (!scanner.run()) {
    return std::nullopt;
  }
  return std::move(scanner.scan);
}

}  // namespace gemma_surgery::tokenizer
