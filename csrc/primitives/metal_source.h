// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The text of the kernels in csrc/metal, put together for the compiler of the running system.

#pragma once

#include <string>

namespace gemma_surgery::ops {

struct MetalFile {
  const char* name;  // nullptr ends the list
  const char* text;
};

// Generated at build time.
extern const MetalFile kMetalFiles[];

// The names of the Metal types X, S and O that the kernels are written in.
struct MetalTypes {
  std::string x;
  std::string s;
  std::string o;
};

// One file with its own includes in their places, and the types in front.
std::string metal_source(const std::string& file, const MetalTypes& types);

}  // namespace gemma_surgery::ops
