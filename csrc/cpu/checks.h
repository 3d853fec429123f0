// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Argument checks shared by the entry points.

#pragma once

#include <cstdint>
#include <string>

#include "cpu/encoding.h"
#include "cpu/matrix.h"

namespace gemma_surgery::cpu {

[[noreturn]] void fail(const char* where, const std::string& message);

// a * b, or an error when it does not fit; both must be non-negative.
int64_t checked_product(const char* where, int64_t a, int64_t b);

void check_size(const char* where, const char* part, int64_t size, int64_t needed);

// Checks the sizes of all parts and returns the bytes of one row.
RowBytes check_source(const char* where, const Source& source, int64_t rows, int64_t cols);
RowBytes check_target(const char* where, const Target& target, int64_t rows, int64_t cols);

// Every index must lie in [-1, limit).
void check_indices(
    const char* where,
    const char* what,
    const int32_t* indices,
    int64_t count,
    int64_t limit);

}  // namespace gemma_surgery::cpu
