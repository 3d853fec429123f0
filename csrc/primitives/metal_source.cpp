// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/metal_source.h"

#include <set>
#include <sstream>
#include <stdexcept>

namespace gemma_surgery::ops {

namespace {

const char* find_text(const std::string& name) {
  for (const MetalFile* file = kMetalFiles; file->name; ++file) {
    if (name == file->name) {
      return file->text;
    }
  }
  throw std::invalid_argument("[metal] need a kernel source of this package, got `" + name + "`");
}

// Appends `name` line by line, each of our headers where it is first included.
void append(const std::string& name, std::set<std::string>& seen, std::string& out) {
  constexpr std::string_view kInclude = "#include \"metal/";
  std::istringstream lines(find_text(name));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kInclude)) {
      const std::string header = line.substr(kInclude.size(), line.rfind('"') - kInclude.size());
      if (seen.insert(header).second) {
        append(header, seen, out);
      }
    } else if (line != "#pragma once") {
      out += line + "\n";
    }
  }
}

}  // namespace

std::string metal_source(const std::string& file, const MetalTypes& types) {
  std::string out = "#include <metal_stdlib>\n#include <metal_simdgroup>\nusing namespace metal;\n";
  out += "typedef " + types.x + " X;\n";
  out += "typedef " + types.s + " S;\n";
  out += "typedef " + types.o + " O;\n";
  std::set<std::string> seen;
  append(file + ".metal", seen, out);
  return out;
}

}  // namespace gemma_surgery::ops
