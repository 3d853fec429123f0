// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/encoding.h"

#include <limits>
#include <stdexcept>

namespace gemma_surgery::cpu {

namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("[encoding] " + message);
}

Dtype parse_dtype(const std::string& name) {
  for (Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::U8}) {
    if (name == dtype_name(dtype)) {
      return dtype;
    }
  }
  fail("need dtype `F32`, `F16` or `BF16`, got `" + name + "`");
}

Mode parse_mode(const std::string& name) {
  for (Mode mode : {Mode::Affine, Mode::Symmetric, Mode::Mxfp4, Mode::Nvfp4, Mode::Mxfp8}) {
    if (name == mode_name(mode)) {
      return mode;
    }
  }
  fail("need mode `affine`, `symmetric`, `mxfp4`, `nvfp4` or `mxfp8`, got `" + name + "`");
}

bool is_float_mode(Mode mode) {
  return mode == Mode::Mxfp4 || mode == Mode::Nvfp4 || mode == Mode::Mxfp8;
}

Encoding make_float_encoding(Mode mode, int bits, int group_size) {
  const int needed_bits = mode == Mode::Mxfp8 ? 8 : 4;
  const int needed_group = mode == Mode::Nvfp4 ? 16 : 32;
  if ((bits != 0 && bits != needed_bits) || (group_size != 0 && group_size != needed_group)) {
    fail(
        std::string("`") + mode_name(mode) + "` needs " + std::to_string(needed_bits) +
        " bits in groups of " + std::to_string(needed_group) + ", got " + std::to_string(bits) +
        " bits in groups of " + std::to_string(group_size));
  }
  return {Dtype::U8, mode, needed_bits, needed_group};
}

}  // namespace

Encoding make_encoding(
    const std::string& dtype_text,
    int bits,
    int group_size,
    const std::string& mode_text) {
  const Dtype dtype = parse_dtype(dtype_text);
  if (bits == 0 && mode_text.empty()) {
    if (dtype == Dtype::U8) {
      fail("a dense matrix needs dtype `F32`, `F16` or `BF16`, got `U8`");
    }
    if (group_size != 0) {
      fail("a dense matrix has no groups, got group size " + std::to_string(group_size));
    }
    return {dtype, Mode::Dense, 0, 0};
  }
  const Mode mode = mode_text.empty() ? Mode::Affine : parse_mode(mode_text);
  if (is_float_mode(mode)) {
    return make_float_encoding(mode, bits, group_size);
  }
  if (dtype == Dtype::U8) {
    fail("scales and biases need dtype `F32`, `F16` or `BF16`, got `U8`");
  }
  if (bits < 2 || bits > 8 || bits == 7) {
    fail("need 2, 3, 4, 5, 6 or 8 bits, got " + std::to_string(bits));
  }
  if (group_size != 32 && group_size != 64 && group_size != 128) {
    fail("need group size 32, 64 or 128, got " + std::to_string(group_size));
  }
  return {dtype, mode, bits, group_size};
}

RowBytes row_bytes(const Encoding& encoding, int64_t cols) {
  if (cols < 0 || cols > std::numeric_limits<int32_t>::max()) {
    fail("need 0 to 2147483647 columns, got " + std::to_string(cols));
  }
  if (encoding.mode == Mode::Dense) {
    return {cols * dtype_bytes(encoding.dtype), 0, 0};
  }
  if (cols % encoding.group_size != 0) {
    fail(
        "need a number of columns divisible by group size " + std::to_string(encoding.group_size) +
        ", got " + std::to_string(cols));
  }
  const int64_t groups = cols / encoding.group_size;
  const int64_t scales = groups * dtype_bytes(encoding.dtype);
  return {cols / 8 * encoding.bits, scales, has_biases(encoding) ? scales : 0};
}

bool same_layout(const Encoding& source, const Encoding& target) {
  const bool same_mode =
      source.mode == target.mode || (source.mode == Mode::Symmetric && target.mode == Mode::Affine);
  return same_mode && source.dtype == target.dtype && source.bits == target.bits &&
         source.group_size == target.group_size;
}

bool has_biases(const Encoding& encoding) {
  return encoding.mode == Mode::Affine || encoding.mode == Mode::Symmetric;
}

int64_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
      return 4;
    case Dtype::F16:
    case Dtype::BF16:
      return 2;
    case Dtype::U8:
      return 1;
  }
  return 0;
}

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
      return "F32";
    case Dtype::F16:
      return "F16";
    case Dtype::BF16:
      return "BF16";
    case Dtype::U8:
      return "U8";
  }
  return "";
}

const char* mode_name(Mode mode) {
  switch (mode) {
    case Mode::Dense:
      return "";
    case Mode::Affine:
      return "affine";
    case Mode::Symmetric:
      return "symmetric";
    case Mode::Mxfp4:
      return "mxfp4";
    case Mode::Nvfp4:
      return "nvfp4";
    case Mode::Mxfp8:
      return "mxfp8";
  }
  return "";
}

std::string describe(const Encoding& encoding) {
  std::string text = std::string("Encoding('") + dtype_name(encoding.dtype) + "'";
  if (encoding.mode != Mode::Dense) {
    text += ", bits=" + std::to_string(encoding.bits) +
            ", group_size=" + std::to_string(encoding.group_size) + ", mode='" +
            mode_name(encoding.mode) + "'";
  }
  return text + ")";
}

}  // namespace gemma_surgery::cpu
