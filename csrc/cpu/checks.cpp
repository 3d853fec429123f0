// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/checks.h"

#include <stdexcept>

namespace gemma_surgery::cpu {

namespace {

template <typename Matrix>
RowBytes
check_parts(const char* where, const char* role, const Matrix& matrix, int64_t rows, int64_t cols) {
  const RowBytes row = row_bytes(matrix.encoding, cols);
  const std::string prefix = std::string(role) + " ";
  check_size(
      where,
      (prefix + "weight").c_str(),
      matrix.weight.size,
      checked_product(where, rows, row.weight));
  check_size(
      where,
      (prefix + "scales").c_str(),
      matrix.scales.size,
      checked_product(where, rows, row.scales));
  check_size(
      where,
      (prefix + "biases").c_str(),
      matrix.biases.size,
      checked_product(where, rows, row.biases));
  return row;
}

}  // namespace

void fail(const char* where, const std::string& message) {
  throw std::invalid_argument(std::string("[") + where + "] " + message);
}

int64_t checked_product(const char* where, int64_t a, int64_t b) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) {
    fail(
        where,
        "need a size between 0 and 2^63 bytes, got " + std::to_string(a) + " times " +
            std::to_string(b));
  }
  return product;
}

void check_size(const char* where, const char* part, int64_t size, int64_t needed) {
  if (size != needed) {
    fail(
        where,
        std::string("need ") + std::to_string(needed) + " bytes of " + part + ", got " +
            std::to_string(size));
  }
}

RowBytes check_source(const char* where, const Source& source, int64_t rows, int64_t cols) {
  return check_parts(where, "source", source, rows, cols);
}

RowBytes check_target(const char* where, const Target& target, int64_t rows, int64_t cols) {
  return check_parts(where, "target", target, rows, cols);
}

void check_indices(
    const char* where,
    const char* what,
    const int32_t* indices,
    int64_t count,
    int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < -1 || indices[i] >= limit) {
      fail(
          where,
          std::string("need ") + what + " between -1 and " + std::to_string(limit - 1) + ", got " +
              std::to_string(indices[i]) + " at position " + std::to_string(i));
    }
  }
}

}  // namespace gemma_surgery::cpu
