// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Checked construction, sizes and names of encodings.

#pragma once

#include <string>

#include "cpu/types.h"

namespace gemma_surgery::cpu {

// Builds a checked encoding from its names; 0 and "" stand for the mode's defaults.
// Throws std::invalid_argument on anything that MLX could not read.
Encoding make_encoding(const std::string& dtype, int bits, int group_size, const std::string& mode);

// Throws std::invalid_argument when `cols` is not a whole number of groups.
RowBytes row_bytes(const Encoding& encoding, int64_t cols);

// True when bytes in `source` encoding mean the same values in `target` encoding.
bool same_layout(const Encoding& source, const Encoding& target);

bool has_biases(const Encoding& encoding);
int64_t dtype_bytes(Dtype dtype);
const char* dtype_name(Dtype dtype);
const char* mode_name(Mode mode);
std::string describe(const Encoding& encoding);

}  // namespace gemma_surgery::cpu
