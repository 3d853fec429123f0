// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// csrc/tokenizer as Python sees it: the tables go back as NumPy arrays that own their memory,
// JSON as bytes that are written in place.

#include "bind_tokenizer.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "arrays.h"
#include "tokenizer/scan.h"
#include "tokenizer/token_table.h"
#include "tokenizer/write.h"

namespace gemma_surgery::python {

namespace {

namespace gt = gemma_surgery::tokenizer;
using namespace nb::literals;

using Int32s = nb::ndarray<nb::numpy, int32_t>;

constexpr int64_t kCodePoints = 0x110000;

// Hands the memory of a vector to NumPy.
Int32s to_numpy(std::vector<int32_t> values, std::initializer_list<size_t> shape) {
  auto owned = std::make_unique<std::vector<int32_t>>(std::move(values));
  nb::capsule owner(owned.get(), [](void* values) noexcept {
    delete static_cast<std::vector<int32_t>*>(values);
  });
  return Int32s(owned.release()->data(), shape, owner);
}

nb::object to_str(std::string_view text) {
  PyObject* str = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
  if (str == nullptr) {
    throw nb::python_error();
  }
  return nb::steal(str);
}

nb::object token_or_none(const gt::TokenTable& table, int32_t id) {
  return table.exists(id) ? to_str(table.token(id)) : nb::none();
}

void fill_table(gt::TokenTable* self, nb::list tokens) {
  gt::TokenTable table;
  int32_t id = 0;
  for (nb::handle token : tokens) {
    if (!token.is_none() && !table.add(nb::cast<std::string_view>(token), id)) {
      gs::fail("tokenizer", "need different tokens, got one twice");
    }
    ++id;
  }
  new (self) gt::TokenTable(std::move(table));
}

nb::list tokens_of(const gt::TokenTable& table) {
  nb::list tokens;
  for (int32_t id = 0; id < table.num_ids(); ++id) {
    tokens.append(token_or_none(table, id));
  }
  return tokens;
}

std::vector<int32_t> starting_with(const gt::TokenTable& table, std::string_view prefix) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < table.num_ids(); ++id) {
    if (table.exists(id) && table.token(id).starts_with(prefix)) {
      ids.push_back(id);
    }
  }
  return ids;
}

Int32s lengths_of(const gt::TokenTable& table) {
  std::vector<int32_t> lengths(static_cast<size_t>(table.num_ids()));
  table.lengths(lengths.data());
  const size_t count = lengths.size();
  return to_numpy(std::move(lengths), {count});
}

void classes_of(const gt::TokenTable& table, const Input& classes, const Output& out) {
  constexpr const char* kWhere = "classes";
  const gs::ConstBytes from = input(kWhere, "table", classes);
  const gs::MutableBytes to = output(kWhere, "out", out);
  gs::check_size(kWhere, "table", from.size, kCodePoints);
  gs::check_size(kWhere, "output", to.size, table.num_ids());
  nb::gil_scoped_release release;
  table.classes(from.data, to.data);
}

// Bytes that `write(allocate)` fills, without the GIL but for their allocation.
template <typename Write>
nb::object written(const Write& write) {
  nb::object bytes;
  nb::gil_scoped_release release;
  write([&](size_t size) {
    nb::gil_scoped_acquire acquire;
    bytes = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!bytes.is_valid()) {
      throw nb::python_error();
    }
    return PyBytes_AS_STRING(bytes.ptr());
  });
  return bytes;
}

const uint8_t* mask(const char* where, const gt::TokenTable& table, const Input& keep) {
  const gs::ConstBytes bytes = input(where, "keep", keep);
  gs::check_size(where, "mask", bytes.size, table.num_ids());
  return bytes.data;
}

nb::object vocab_json(const gt::TokenTable& table, const Input& ids, const Input& keep) {
  constexpr const char* kWhere = "vocab_json";
  const Indices vocab_ids(kWhere, "ids", ids);
  const uint8_t* kept = mask(kWhere, table, keep);
  return written([&](const gt::Allocate& allocate) {
    gt::write_vocab(table, vocab_ids.data(), vocab_ids.count(), kept, allocate);
  });
}

nb::object
merges_json(const gt::TokenTable& table, const Input& merges, bool pairs, const Input& keep) {
  constexpr const char* kWhere = "merges_json";
  const Indices flat(kWhere, "merges", merges);
  gs::check_size(kWhere, "merges", flat.count() % 3, 0);
  const uint8_t* kept = mask(kWhere, table, keep);
  return written([&](const gt::Allocate& allocate) {
    gt::write_merges(table, flat.data(), flat.count() / 3, pairs, kept, allocate);
  });
}

nb::object scan_tokenizer(const Input& data, int64_t limit) {
  const gs::ConstBytes bytes = input("scan_tokenizer", "data", data);
  std::optional<gt::Scan> scan;
  {
    nb::gil_scoped_release release;
    scan = gt::scan_tokenizer(
        {reinterpret_cast<const char*>(bytes.data), static_cast<size_t>(bytes.size)}, limit);
  }
  if (!scan) {
    return nb::none();
  }
  const size_t num_tokens = scan->vocab_ids.size();
  const size_t num_merges = scan->merges.size() / 3;
  return nb::make_tuple(
      std::move(scan->table),
      to_numpy(std::move(scan->vocab_ids), {num_tokens}),
      to_numpy(std::move(scan->merges), {num_merges, 3}),
      scan->merge_pairs,
      nb::make_tuple(scan->vocab_span.start, scan->vocab_span.stop),
      nb::make_tuple(scan->merges_span.start, scan->merges_span.stop));
}

}  // namespace

void bind_tokenizer(nb::module_& m) {
  nb::class_<gt::TokenTable>(m, "TokenTable", "The tokens of a vocabulary by id and by text.")
      .def("__init__", &fill_table, "tokens"_a)
      .def_prop_ro("num_ids", &gt::TokenTable::num_ids)
      .def("add", &gt::TokenTable::add, "token"_a, "id"_a, "False where either is taken already.")
      .def(
          "find",
          [](const gt::TokenTable& table, std::string_view token) { return table.find(token); },
          "token"_a,
          "The id of a token, -1 where there is none.")
      .def("token", &token_or_none, "id"_a, "The token of an id, None where there is none.")
      .def("tokens", &tokens_of, "All tokens by id, None where there is none.")
      .def(
          "starting_with",
          [](const gt::TokenTable& table, std::string_view prefix) {
            std::vector<int32_t> ids = starting_with(table, prefix);
            const size_t count = ids.size();
            return to_numpy(std::move(ids), {count});
          },
          "prefix"_a,
          "Ids of the tokens with that prefix, ascending.")
      .def("lengths", &lengths_of, "Code points of every token, 0 where there is none.")
      .def(
          "classes",
          &classes_of,
          "table"_a,
          "out"_a.noconvert(),
          "Fill out[num_ids] with the union of table[code point] over every token.")
      .def(
          "vocab_json",
          &vocab_json,
          "ids"_a,
          "keep"_a,
          "The kept of `ids` as compact JSON, token to id.")
      .def(
          "merges_json",
          &merges_json,
          "merges"_a,
          "pairs"_a,
          "keep"_a,
          "The merges whose three tokens are kept as compact JSON.");
  m.def(
      "scan_tokenizer",
      &scan_tokenizer,
      "data"_a,
      "limit"_a,
      "Table, vocabulary ids, merges, pairs, and the spans of both values; None where the text "
      "is not understood.");
}

}  // namespace gemma_surgery::python
