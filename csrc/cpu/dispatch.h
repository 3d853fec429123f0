// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Which kernel tables this machine can run.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace gemma_surgery::cpu {

// Tables that the processor and the operating system support, the widest first.
const std::vector<const Kernels*>& available_kernels();

// The widest table for an empty name, else the named one; throws std::invalid_argument.
const Kernels& find_kernels(const std::string& name);

// Names of the processor features that the choice rests on, and whether each is there.
std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace gemma_surgery::cpu
