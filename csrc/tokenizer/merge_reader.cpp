// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "tokenizer/merge_reader.h"

namespace gemma_surgery::tokenizer {

namespace {

constexpr size_t kBatch = 64;
constexpr size_t kBatchBytes = 1 << 16;

}  // namespace

// Skips what `read` accepts; where it is what it was last time, in one comparison.
template <typename Read>
bool MergeReader::take_gap(std::string_view& gap, const Read& read) {
  if (!gap.empty() && cursor_.take_text(gap)) {
    return true;
  }
  const JsonCursor before = cursor_;
  if (!read()) {
    cursor_ = before;
    return false;
  }
  gap = cursor_.text_since(before);
  return true;
}

bool MergeReader::read_pairs() {
  if (!cursor_.take('[')) {
    return false;
  }
  do {
    std::string_view left;
    std::string_view right;
    if (!cursor_.read_string(left_, left) ||
        !take_gap(gap_within_, [&] { return cursor_.take(',') && cursor_.peek('"'); }) ||
        !cursor_.read_string(right_, right) || !add(left, right)) {
      return false;
    }
  } while (take_gap(gap_between_, [&] {
    return cursor_.take(']') && cursor_.take(',') && cursor_.take('[') && cursor_.peek('"');
  }));
  return cursor_.take(']') && resolve();
}

bool MergeReader::read_joined() {
  do {
    std::string_view text;
    if (!cursor_.read_string(left_, text)) {
      return false;
    }
    const size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos ||
        !add(text.substr(0, space), text.substr(space + 1))) {
      return false;
    }
  } while (take_gap(gap_between_, [&] { return cursor_.take(',') && cursor_.peek('"'); }));
  return resolve();
}

bool MergeReader::add(std::string_view left, std::string_view right) {
  if (left.empty() || right.empty()) {
    return false;
  }
  Pending next = {pieces_.size(), left.size(), left.size() + right.size(), 0, 0, 0, false};
  pieces_.append(left).append(right);
  const std::string_view made = std::string_view(pieces_).substr(next.start);
  // The splits of a token mostly follow one another.
  if (!pending_.empty()) {
    const Pending& last = pending_.back();
    next.makes_the_same = made == std::string_view(pieces_).substr(last.start, last.size);
  }
  next.left_hash = TokenTable::hash(made.substr(0, next.left_size));
  next.right_hash = TokenTable::hash(made.substr(next.left_size));
  table_.expect_slot(next.left_hash);
  table_.expect_slot(next.right_hash);
  if (!next.makes_the_same) {
    next.made_hash = TokenTable::hash(made);
    table_.expect_slot(next.made_hash);
  }
  pending_.push_back(next);
  return (pending_.size() < kBatch && pieces_.size() < kBatchBytes) || resolve();
}

bool MergeReader::resolve() {
  for (const Pending& merge : pending_) {
    table_.expect_text(merge.left_hash);
    table_.expect_text(merge.right_hash);
    if (!merge.makes_the_same) {
      table_.expect_text(merge.made_hash);
    }
  }
  int32_t made_id = -1;
  for (const Pending& merge : pending_) {
    const auto made = std::string_view(pieces_).substr(merge.start, merge.size);
    const int32_t left_id = table_.find(made.substr(0, merge.left_size), merge.left_hash);
    const int32_t right_id = table_.find(made.substr(merge.left_size), merge.right_hash);
    if (!merge.makes_the_same) {
      made_id = table_.find(made, merge.made_hash);
    }
    if (left_id < 0 || right_id < 0 || made_id < 0) {
      return false;
    }
    merges_.insert(merges_.end(), {left_id, right_id, made_id});
  }
  pending_.clear();
  pieces_.clear();
  return true;
}

}  // namespace gemma_surgery::tokenizer
