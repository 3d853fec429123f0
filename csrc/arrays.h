// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Python buffers as checked byte ranges. Any dtype and shape is taken as bytes; what is not
// C-contiguous is refused, never copied: a copy of an output would be lost.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cpu/checks.h"
#include "cpu/matrix.h"

namespace gemma_surgery::python {

namespace nb = nanobind;
namespace gs = gemma_surgery::cpu;

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using OptionalInput = std::optional<Input>;
using OptionalOutput = std::optional<Output>;

template <typename Array>
int64_t contiguous_bytes(const char* where, const char* name, const Array& array) {
  int64_t expected = 1;
  for (size_t axis = array.ndim(); axis-- > 0;) {
    if (array.shape(axis) != 1 && array.stride(axis) != expected && array.size() != 0) {
      gs::fail(
          where, std::string("need a C-contiguous array for `") + name + "`, got a strided one");
    }
    expected *= static_cast<int64_t>(array.shape(axis));
  }
  return static_cast<int64_t>(array.nbytes());
}

inline gs::ConstBytes input(const char* where, const char* name, const Input& array) {
  return {static_cast<const uint8_t*>(array.data()), contiguous_bytes(where, name, array)};
}

inline gs::ConstBytes input(const char* where, const char* name, const OptionalInput& array) {
  return array ? input(where, name, *array) : gs::ConstBytes{};
}

inline gs::MutableBytes output(const char* where, const char* name, const Output& array) {
  return {static_cast<uint8_t*>(array.data()), contiguous_bytes(where, name, array)};
}

inline gs::MutableBytes output(const char* where, const char* name, const OptionalOutput& array) {
  return array ? output(where, name, *array) : gs::MutableBytes{};
}

// Indices, copied only when they are not aligned for int32 reads.
class Indices {
 public:
  Indices(const char* where, const char* name, const Input& array) {
    if (array.dtype() != nb::dtype<int32_t>() || array.ndim() != 1) {
      gs::fail(where, std::string("need a one-dimensional int32 array for `") + name + "`");
    }
    const gs::ConstBytes bytes = input(where, name, array);
    count_ = bytes.size / 4;
    data_ = reinterpret_cast<const int32_t*>(bytes.data);
    if (reinterpret_cast<uintptr_t>(bytes.data) % alignof(int32_t) != 0) {
      copy_.resize(static_cast<size_t>(count_));
      std::memcpy(copy_.data(), bytes.data, static_cast<size_t>(bytes.size));
      data_ = copy_.data();
    }
  }

  const int32_t* data() const {
    // A pointer that is not null even when empty: null stands for "all columns".
    static const int32_t none = 0;
    return count_ == 0 ? &none : data_;
  }
  int64_t count() const {
    return count_;
  }

 private:
  std::vector<int32_t> copy_;
  const int32_t* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace gemma_surgery::python
