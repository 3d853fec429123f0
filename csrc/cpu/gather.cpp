// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Moves of whole rows and whole units: no decoding, runs of neighbours in one copy.
// Bytes moved: each kept byte is read once and written once.

#include <cstring>
#include <vector>

#include "cpu/checks.h"

namespace gemma_surgery::cpu {

namespace {

// `count` consecutive units from `source` on, or zeros when source is -1.
struct Run {
  int64_t source;
  int64_t count;
};

std::vector<Run> find_runs(const int32_t* indices, int64_t count) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = indices[i];
    if (!runs.empty()) {
      Run& last = runs.back();
      const bool zeros = index < 0 && last.source < 0;
      if (zeros || (index >= 0 && last.source >= 0 && index == last.source + last.count)) {
        ++last.count;
        continue;
      }
    }
    runs.push_back({index, 1});
  }
  return runs;
}

void copy_runs(
    const std::vector<Run>& runs,
    const uint8_t* source,
    int64_t unit_bytes,
    uint8_t* out) {
  for (const Run& run : runs) {
    const auto bytes = static_cast<size_t>(run.count * unit_bytes);
    if (run.source < 0) {
      std::memset(out, 0, bytes);
    } else {
      std::memcpy(out, source + run.source * unit_bytes, bytes);
    }
    out += bytes;
  }
}

// Scattered small units: a fixed-size move per unit beats a call per run.
template <typename T>
void copy_units(const int32_t* indices, int64_t count, const uint8_t* source, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    T unit = 0;
    if (indices[i] >= 0) {
      std::memcpy(&unit, source + static_cast<int64_t>(sizeof(T)) * indices[i], sizeof(T));
    }
    std::memcpy(out + static_cast<int64_t>(sizeof(T)) * i, &unit, sizeof(T));
  }
}

}  // namespace

void gather_rows(
    const ConstBytes& source,
    int64_t row_bytes,
    const int32_t* indices,
    int64_t count,
    const MutableBytes& out) {
  constexpr const char* kWhere = "gather_rows";
  if (row_bytes <= 0 || source.size % row_bytes != 0) {
    fail(
        kWhere,
        "need a source of whole rows of " + std::to_string(row_bytes) + " bytes, got " +
            std::to_string(source.size) + " bytes");
  }
  check_indices(kWhere, "row indices", indices, count, source.size / row_bytes);
  check_size(kWhere, "output", out.size, checked_product(kWhere, count, row_bytes));
  copy_runs(find_runs(indices, count), source.data, row_bytes, out.data);
}

void gather_units(
    const ConstBytes& source,
    int64_t rows,
    int64_t row_bytes,
    int64_t unit_bytes,
    const int32_t* indices,
    int64_t count,
    const MutableBytes& out) {
  constexpr const char* kWhere = "gather_units";
  if (unit_bytes <= 0 || row_bytes < 0 || row_bytes % unit_bytes != 0) {
    fail(
        kWhere,
        "need rows of whole units of " + std::to_string(unit_bytes) + " bytes, got rows of " +
            std::to_string(row_bytes) + " bytes");
  }
  check_size(kWhere, "source", source.size, checked_product(kWhere, rows, row_bytes));
  check_indices(kWhere, "unit indices", indices, count, row_bytes / unit_bytes);
  const int64_t out_bytes = checked_product(kWhere, count, unit_bytes);
  check_size(kWhere, "output", out.size, checked_product(kWhere, rows, out_bytes));
  const std::vector<Run> runs = find_runs(indices, count);
  const bool scattered = static_cast<int64_t>(runs.size()) * 4 > count;
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* from = source.data + row * row_bytes;
    uint8_t* to = out.data + row * out_bytes;
    if (scattered && unit_bytes == 2) {
      copy_units<uint16_t>(indices, count, from, to);
    } else if (scattered && unit_bytes == 4) {
      copy_units<uint32_t>(indices, count, from, to);
    } else {
      copy_runs(runs, from, unit_bytes, to);
    }
  }
}

}  // namespace gemma_surgery::cpu
