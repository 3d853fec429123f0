// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// csrc/tokenizer alone, without Python: random tokenizers come back as they were written, and
// mutated ones are read to the end or refused, never beyond (run it under sanitizers).
//
//   gemma_surgery_tokenizer_test [rounds, default 400] [seed, default 1] [file to mutate as well]

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/json_text.h"
#include "tokenizer/scan.h"
#include "tokenizer/utf8.h"
#include "tokenizer/write.h"

using namespace gemma_surgery::tokenizer;

namespace {

constexpr int64_t kLimit = 1 << 21;

int failures = 0;

void check(bool condition, const char* what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}

  size_t below(size_t limit) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<size_t>((state_ * 0x2545F4914F6CDD1Dull) >> 33) % limit;
  }

  template <typename Choices>
  const auto& pick(const Choices& choices) {
    return choices[below(std::size(choices))];
  }

 private:
  uint64_t state_;
};

const std::string kCharacters[] = {
    "a",
    "b",
    "\"",
    "\\",
    "/",
    "\n",
    "\t",
    "\x01",
    "\x7f",
    "]",
    ",",
    "}",
    "\xc3\xa9",
    "\xe2\x96\x81",
    "\xf0\x9f\x91\x8d",
    "\xef\xbf\xbf",
    "\xf4\x8f\xbf\xbf",
    std::string(1, '\0'),
    "model",
    "12345678"};
const char* const kSpaces[] = {"", "", " ", "\n", "\n      ", "\t\r\n", "                "};

struct Document {
  std::map<std::string, int32_t> vocab;
  std::vector<int32_t> merges;
  bool pairs;
  std::string text;
};

std::string quoted(const std::string& text, Random& random) {
  std::string out = "\"";
  for (const char* at = text.data(); at != text.data() + text.size();) {
    const char* start = at;
    const uint32_t point = next_code_point(at);
    char escape[16];
    if (random.below(4) == 0 && point < 0x10000) {
      std::snprintf(escape, sizeof(escape), random.below(2) ? "\\u%04x" : "\\u%04X", point);
      out += escape;
    } else if (random.below(4) == 0 && point >= 0x10000) {
      const uint32_t rest = point - 0x10000;
      std::snprintf(
          escape, sizeof(escape), "\\u%04x\\u%04x", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
      out += escape;
    } else {
      const std::string_view character(start, static_cast<size_t>(at - start));
      std::string plain(escaped_size(character), ' ');
      write_escaped(character, plain.data());
      out += plain;
    }
  }
  return out + '"';
}

std::string random_token(Random& random) {
  std::string token;
  for (size_t left = 1 + random.below(3); left > 0; --left) {
    token += random.pick(kCharacters);
  }
  return token;
}

Document random_document(Random& random) {
  Document document;
  document.pairs = random.below(2) != 0;
  int32_t id = 0;
  std::vector<std::pair<std::string, std::string>> pairs;
  const auto add = [&](const std::string& token) {
    if (document.vocab.emplace(token, id).second) {
      id += 1 + static_cast<int32_t>(random.below(3));
    }
  };
  for (size_t left = random.below(60); left > 0; --left) {
    pairs.emplace_back(random_token(random), random_token(random));
    add(pairs.back().first);
    add(pairs.back().second);
    add(pairs.back().first + pairs.back().second);
  }
  add("last");
  const auto space = [&] { return std::string(random.pick(kSpaces)); };
  const std::string fixed = random.pick(kSpaces);
  std::string vocab = "{";
  for (const auto& [token, token_id] : document.vocab) {
    vocab += (vocab.size() > 1 ? "," : "") + fixed + quoted(token, random) + space() + ":" +
             space() + std::to_string(token_id) + space();
  }
  vocab += "}";
  std::string merges = "[" + space();
  for (const auto& [left, right] : pairs) {
    merges += (document.merges.empty() ? "" : ",") + (random.below(9) ? fixed : space());
    merges += document.pairs ? "[" + fixed + quoted(left, random) + space() + "," + fixed +
                                   quoted(right, random) + fixed + "]"
                             : quoted(left + " " + right, random);
    for (const std::string& token : {left, right, left + right}) {
      document.merges.push_back(document.vocab.at(token));
    }
  }
  merges += space() + "]";
  const std::string first = "\"vocab\":" + space() + vocab;
  const std::string second = "\"merges\"" + space() + ":" + merges;
  const bool turned = random.below(3) == 0;
  document.text = space() + "{\"a\":[1,{\"vocab\":{}}],\"model\":" + space() + "{\"x\":\"]\\\"\"," +
                  (turned ? second : first) + space() + "," + (turned ? first : second) +
                  ",\"y\":-1e5}," + space() + "\"z\":null}" + space();
  return document;
}

// From memory of exactly that size: a sanitizer sees the first byte beyond.
std::optional<Scan> scan_exactly(const std::string& text) {
  const std::unique_ptr<char[]> copy(new char[text.size()]);
  std::memcpy(copy.get(), text.data(), text.size());
  return scan_tokenizer({copy.get(), text.size()}, kLimit);
}

// Whatever was understood can be written, and what was written reads as the same.
std::string rewritten(const Scan& scan) {
  const std::vector<uint8_t> keep(static_cast<size_t>(scan.table.num_ids()), 1);
  std::string vocab;
  std::string merges;
  const auto into = [](std::string& text) {
    return [&text](size_t size) {
      text.assign(size, '?');
      return text.data();
    };
  };
  const auto num_ids = static_cast<int64_t>(scan.vocab_ids.size());
  const auto num_merges = static_cast<int64_t>(scan.merges.size() / 3);
  write_vocab(scan.table, scan.vocab_ids.data(), num_ids, keep.data(), into(vocab));
  write_merges(
      scan.table, scan.merges.data(), num_merges, scan.merge_pairs, keep.data(), into(merges));
  return "{\"model\":{\"vocab\":" + vocab + ",\"merges\":" + merges + "}}";
}

void check_scan(const Scan& scan) {
  std::vector<int32_t> lengths(static_cast<size_t>(scan.table.num_ids()));
  scan.table.lengths(lengths.data());
  const std::vector<uint8_t> classes(0x110000, 1);
  std::vector<uint8_t> found(lengths.size());
  scan.table.classes(classes.data(), found.data());
  for (size_t id = 0; id < found.size(); ++id) {
    check((found[id] != 0) == (lengths[id] > 0), "classes and lengths disagree");
  }
  const std::optional<Scan> again = scan_exactly(rewritten(scan));
  check(again.has_value(), "what was written is not understood");
  if (again) {
    check(again->vocab_ids == scan.vocab_ids, "vocabulary is not what was written");
    check(again->merges == scan.merges, "merges are not what was written");
    for (const int32_t id : scan.vocab_ids) {
      check(again->table.token(id) == scan.table.token(id), "a token is not what was written");
      check(scan.table.find(scan.table.token(id)) == id, "a token is not found");
    }
  }
}

std::string mutated(std::string text, Random& random) {
  static const std::string pieces[] = {
      "\"",
      "\\",
      "\\u",
      "\\ud83d",
      "\\udc4d",
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      "0",
      "-1",
      "1e9",
      "null",
      "\xff",
      "\xc0\x80",
      "\xed\xa0\x80",
      "\xf4\x90\x80\x80",
      "\xe2\x96",
      "\"model\":{",
      "\"vocab\":",
      "\"merges\":[",
      std::string(1, '\0'),
      " ",
      "99999999999999999999"};
  for (size_t left = 1 + random.below(4); left > 0 && !text.empty(); --left) {
    const size_t at = random.below(text.size());
    switch (random.below(5)) {
      case 0:
        text.resize(at);
        break;
      case 1:
        text.erase(at, 1 + random.below(8));
        break;
      case 2:
        text.insert(at, random.pick(pieces));
        break;
      case 3:
        text[at] = static_cast<char>(random.below(256));
        break;
      default:
        text.insert(random.below(text.size()), text.substr(at, random.below(40)));
    }
  }
  return text;
}

void check_utf8_by_counting() {
  // Every code point has one form; of all sequences of two and three bytes, these many are valid.
  int valid = 0;
  for (int bytes = 0; bytes < 1 << 16; ++bytes) {
    const char text[] = {static_cast<char>(bytes >> 8), static_cast<char>(bytes)};
    valid += is_utf8({text, 2});
  }
  check(valid == 128 * 128 + 0x780, "is_utf8 of two bytes");
  valid = 0;
  for (int bytes = 0; bytes < 1 << 24; ++bytes) {
    const char text[] = {
        static_cast<char>(bytes >> 16), static_cast<char>(bytes >> 8), static_cast<char>(bytes)};
    valid += is_utf8({text, 3});
  }
  check(valid == 128 * 128 * 128 + 2 * 128 * 0x780 + 0xF800 - 0x800, "is_utf8 of three bytes");
  check(!is_utf8("\xf0\x8f\xbf\xbf") && is_utf8("\xf0\x90\x80\x80"), "is_utf8 from U+10000");
  check(is_utf8("\xf4\x8f\xbf\xbf") && !is_utf8("\xf4\x90\x80\x80"), "is_utf8 to U+10FFFF");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 400;
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  std::string file;
  if (argc > 3) {
    std::ifstream stream(argv[3], std::ios::binary);
    file.assign(std::istreambuf_iterator<char>(stream), {});
    check(scan_exactly(file).has_value(), "the file is not understood");
  }
  check_utf8_by_counting();
  int refused = 0;
  int understood = 0;
  for (int round = 0; round < rounds; ++round) {
    const Document document = random_document(random);
    const std::optional<Scan> scan = scan_exactly(document.text);
    check(scan.has_value(), "a valid document is not understood");
    if (!scan) {
      std::printf("%s\n", document.text.c_str());
      break;
    }
    check(scan->vocab_ids.size() == document.vocab.size(), "tokens are missing");
    for (const auto& [token, id] : document.vocab) {
      check(scan->table.find(token) == id, "a token has another id");
    }
    check(scan->merges == document.merges, "merges differ");
    check(document.merges.empty() || scan->merge_pairs == document.pairs, "another merge form");
    check_scan(*scan);
    for (int i = 0; i < 20; ++i) {
      const std::optional<Scan> other = scan_exactly(mutated(document.text, random));
      ++(other ? understood : refused);
      if (other) {
        check_scan(*other);
      }
    }
    if (!file.empty() && round % 50 == 0) {
      scan_exactly(mutated(file, random));
    }
  }
  check(rounds < 100 || (refused > rounds && understood > rounds / 10), "mutations are all alike");
  std::printf("rounds: %d, understood: %d, refused: %d\n", rounds, understood, refused);
  return failures == 0 ? 0 : 1;
}
