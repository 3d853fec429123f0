// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of the float kernels share: random arrays of every dtype in exactly sized
// buffers (a sanitizer sees the first byte beyond), their values, and comparison.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/types.h"

namespace float_test {

using gemma_surgery::cpu::Dtype;

inline int failures = 0;

inline void check(bool condition, const std::string& what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
  }
}

// Tables that differ in their float kernels.
inline const std::vector<const gemma_surgery::cpu::Kernels*>& float_tables() {
  static const auto tables = [] {
    std::vector<const gemma_surgery::cpu::Kernels*> list;
    for (const auto* table : gemma_surgery::cpu::available_kernels()) {
      if (list.empty() || list.back()->floats != table->floats) {
        list.push_back(table);
      }
    }
    return list;
  }();
  return tables;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}

  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1Dull;
  }

  int64_t below(int64_t limit) {
    return static_cast<int64_t>((next() >> 11) % static_cast<uint64_t>(limit));
  }

  int64_t between(int64_t low, int64_t high) {
    return low + below(high - low + 1);
  }

  float value() {
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      sum += below(65536) - 32768;
    }
    return static_cast<float>(sum) * 0x1p-15f;
  }

  Dtype dtype() {
    const Dtype all[] = {Dtype::F32, Dtype::F16, Dtype::BF16};
    return all[below(3)];
  }

 private:
  uint64_t state_;
};

inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::F32 ? 4 : 2;
}

// Spacing of the stored numbers relative to their size.
inline double rounding_of(Dtype dtype) {
  return dtype == Dtype::F32 ? 0x1p-24 : dtype == Dtype::F16 ? 0x1p-11 : 0x1p-8;
}

inline double decoded_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const double fraction = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) {
    return fraction != 0 ? std::nan("") : sign * INFINITY;
  }
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}

struct Array {
  std::unique_ptr<uint8_t[]> bytes;
  Dtype dtype;
  int64_t size;

  Array(Dtype of, int64_t count)
      : bytes(new uint8_t[static_cast<size_t>(count * bytes_of(of))]), dtype(of), size(count) {
    std::memset(bytes.get(), 0xA5, static_cast<size_t>(count * bytes_of(of)));
  }

  uint8_t* data() {
    return bytes.get();
  }

  const uint8_t* data() const {
    return bytes.get();
  }

  double at(int64_t index) const {
    if (dtype == Dtype::F32) {
      float value = 0;
      std::memcpy(&value, bytes.get() + index * 4, 4);
      return value;
    }
    uint16_t half = 0;
    std::memcpy(&half, bytes.get() + index * 2, 2);
    if (dtype == Dtype::F16) {
      return decoded_half(half);
    }
    const uint32_t word = static_cast<uint32_t>(half) << 16;
    float value = 0;
    std::memcpy(&value, &word, 4);
    return value;
  }

  // The halves get the nearest value below in magnitude: any stored number will do.
  void set(int64_t index, float value) {
    uint32_t word = 0;
    std::memcpy(&word, &value, 4);
    if (dtype == Dtype::F32) {
      std::memcpy(bytes.get() + index * 4, &word, 4);
      return;
    }
    auto half = static_cast<uint16_t>(word >> 16);
    if (dtype == Dtype::F16) {
      const float magnitude = std::fabs(value);
      half = std::isnan(value) ? 0x7E00
             : magnitude < 0x1p-14f
                 ? 0
                 : static_cast<uint16_t>(((word & 0x7FFFFFFF) - 0x38000000) >> 13);
      half |= static_cast<uint16_t>((word >> 16) & 0x8000);
    }
    std::memcpy(bytes.get() + index * 2, &half, 2);
  }

  void fill(Random& random) {
    for (int64_t i = 0; i < size; ++i) {
      set(i, random.value());
    }
  }

  bool same_bytes(const Array& other) const {
    return size == other.size && dtype == other.dtype &&
           std::memcmp(data(), other.data(), static_cast<size_t>(size * bytes_of(dtype))) == 0;
  }
};

// Whether `got` is `wanted` but for one rounding of the dtype and `slack`.
inline bool near(double got, double wanted, Dtype dtype, double slack) {
  if (std::isnan(wanted)) {
    return std::isnan(got);
  }
  const double smallest = dtype == Dtype::F16 ? 0x1p-25 : 0.0;
  return std::fabs(got - wanted) <= rounding_of(dtype) * std::fabs(wanted) + smallest + slack;
}

}  // namespace float_test
