// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// One call of csrc/cpu from a primitive: arrays as pointers, and the work queued on the
// stream. Arrays are taken as they lie wherever the kernels can read them so.

#pragma once

#include <functional>
#include <string>
#include <utility>

#include "cpu/float_kernels.h"
#include "cpu/products.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/utils.h"
#include "primitives/affine.h"

namespace gemma_surgery::ops {

// Which kernels and how many threads all ops use: the widest and all, unless a test says so.
void set_cpu_options(const std::string& isa, int threads);
cpu::ProductOptions cpu_options(cpu::Activations activations = cpu::Activations::Full);

cpu::FloatOptions float_options();

cpu::Dtype cpu_dtype(mx::Dtype dtype);

// For ops that have no GPU side of their own.
[[noreturn]] void need_cpu_stream(const char* where);
mx::Stream cpu_stream(const char* where, mx::StreamOrDevice stream);

class CpuCall {
 public:
  explicit CpuCall(mx::Stream stream) : encoder_(mx::cpu::get_command_encoder(stream)) {}

  // For kernels that take any strides.
  const uint8_t* in_place(const mx::array& x);

  // The elements of `x` in row-major order, copied only if they do not lie so.
  const uint8_t* contiguous(const mx::array& x);

  // Rows [..., cols] with one stride between them, copied only if they have no such stride.
  cpu::FloatRows rows(const mx::array& x);

  cpu::AffineMatrix matrix(const std::vector<mx::array>& inputs, size_t first, Packing packing);

  // Allocates `out`, row-major or with an order of its own for the same elements.
  uint8_t* output(mx::array& out);
  uint8_t* output(mx::array& out, mx::Strides strides);
  cpu::MutableFloatRows output_rows(mx::array& out);

  template <typename T>
  T* output(mx::array& out) {
    return reinterpret_cast<T*>(output(out));
  }

  template <typename T>
  const T* contiguous(const mx::array& x) {
    return reinterpret_cast<const T*>(contiguous(x));
  }

  // Queues `work`, unless all outputs are empty. When it throws, all bytes of the outputs are set,
  // which is NaN and -1, and MLX raises the error where the stream is next waited for.
  void run(std::function<void()> work);

 private:
  const uint8_t* copied(const mx::array& x);

  mx::cpu::CommandEncoder& encoder_;
  std::vector<std::pair<uint8_t*, size_t>> outputs_;
};

}  // namespace gemma_surgery::ops
