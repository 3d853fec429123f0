// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One evaluation on the GPU from a primitive: kernels compiled from their source on first
// use, arrays and parameters bound by index, dispatches in order.

#pragma once

#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/metal/device.h"
#include "primitives/affine.h"
#include "primitives/metal_source.h"

namespace gemma_surgery::ops {

// Tests make both small, to see several tiles.
#ifndef GEMMA_SURGERY_MOST_PRODUCTS
#define GEMMA_SURGERY_MOST_PRODUCTS (int64_t(1) << 36)
#define GEMMA_SURGERY_MOST_TEMPORARY_BYTES (int64_t(1) << 26)
#endif

// Work of one dispatch, in multiplications: far below what the GPU watchdog allows.
inline constexpr int64_t kMostProducts = GEMMA_SURGERY_MOST_PRODUCTS;

// The largest temporary of one evaluation.
inline constexpr int64_t kMostTemporaryBytes = GEMMA_SURGERY_MOST_TEMPORARY_BYTES;

const char* metal_type(mx::Dtype dtype);
MetalTypes metal_types(mx::Dtype x, mx::Dtype s, mx::Dtype o);

struct MetalConstant {
  int value;
  bool is_bool = false;
};

// Function constants 0, 1, 2 ... in order.
using MetalConstants = std::vector<MetalConstant>;

inline MetalConstant flag(bool value) {
  return {value ? 1 : 0, true};
}

inline int64_t groups_for(int64_t count, int64_t each) {
  return (count + each - 1) / each;
}

class MetalCall {
 public:
  explicit MetalCall(mx::Stream stream)
      : device_(mx::metal::device(stream.device)),
        encoder_(mx::metal::get_command_encoder(stream)) {}

  // `x` in row-major order, copied only if it does not lie so.
  mx::array contiguous(const mx::array& x);

  void allocate(mx::array& out);
  mx::array temporary(mx::Shape shape, mx::Dtype dtype);

  // Chooses the kernel that the following calls bind arguments of.
  void
  use(const std::string& file,
      const std::string& kernel,
      const MetalTypes& types,
      const MetalConstants& constants);

  void input(const mx::array& x, int index, int64_t offset_bytes = 0) {
    encoder_.set_input_array(x, index, offset_bytes);
  }

  void output(mx::array& x, int index, int64_t offset_bytes = 0) {
    encoder_.set_output_array(x, index, offset_bytes);
  }

  template <typename T>
  void parameter(const T& value, int index) {
    encoder_.set_bytes(value, index);
  }

  // Threadgroups of `threads` threads.
  void dispatch(int64_t groups_x, int64_t groups_y, int threads);

 private:
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
};

}  // namespace gemma_surgery::ops
