// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/cpu_call.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/dispatch.h"
#include "mlx/allocator.h"

namespace gemma_surgery::ops {

namespace {

std::atomic<const cpu::Kernels*> chosen_kernels{nullptr};
std::atomic<int> chosen_threads{0};

// Copies a strided array, axis by axis; the last axis in one loop per element size.
void copy_strided(
    uint8_t*& to,
    const uint8_t* from,
    const mx::Shape& shape,
    const mx::Strides& strides,
    size_t axis,
    size_t item) {
  const int64_t step = strides[axis] * static_cast<int64_t>(item);
  const bool last = axis + 1 == shape.size();
  if (last && strides[axis] == 1) {
    std::memcpy(to, from, static_cast<size_t>(shape[axis]) * item);
    to += static_cast<size_t>(shape[axis]) * item;
    return;
  }
  for (int i = 0; i < shape[axis]; ++i, from += step) {
    if (last) {
      std::memcpy(to, from, item);
      to += item;
    } else {
      copy_strided(to, from, shape, strides, axis + 1, item);
    }
  }
}

}  // namespace

void set_cpu_options(const std::string& isa, int threads) {
  chosen_kernels = isa.empty() ? nullptr : &cpu::find_kernels(isa);
  chosen_threads = threads;
}

cpu::ProductOptions cpu_options(cpu::Activations activations) {
  return {chosen_kernels, chosen_threads, activations};
}

cpu::FloatOptions float_options() {
  return {chosen_kernels, chosen_threads};
}

void need_cpu_stream(const char* where) {
  fail(where, "need a CPU stream, got one of a GPU");
}

mx::Stream cpu_stream(const char* where, mx::StreamOrDevice stream_or_device) {
  const mx::Stream stream = mx::to_stream(stream_or_device);
  if (stream.device != mx::Device::cpu) {
    need_cpu_stream(where);
  }
  return stream;
}

cpu::Dtype cpu_dtype(mx::Dtype dtype) {
  return dtype == mx::float32   ? cpu::Dtype::F32
         : dtype == mx::float16 ? cpu::Dtype::F16
                                : cpu::Dtype::BF16;
}

const uint8_t* CpuCall::copied(const mx::array& x) {
  mx::array copy(x.shape(), x.dtype(), nullptr, {});
  copy.set_data(mx::allocator::malloc(copy.nbytes()));
  encoder_.add_temporary(copy);
  auto* to = copy.data<uint8_t>();
  encoder_.dispatch([to,
                     from = x.data<uint8_t>(),
                     shape = x.shape(),
                     strides = x.strides(),
                     item = x.itemsize()] {
    uint8_t* next = to;
    copy_strided(next, from, shape, strides, 0, item);
  });
  return to;
}

const uint8_t* CpuCall::in_place(const mx::array& x) {
  encoder_.set_input_array(x);
  return x.data<uint8_t>();
}

const uint8_t* CpuCall::contiguous(const mx::array& x) {
  encoder_.set_input_array(x);
  return x.flags().row_contiguous || x.size() <= 1 ? x.data<uint8_t>() : copied(x);
}

cpu::FloatRows CpuCall::rows(const mx::array& x) {
  encoder_.set_input_array(x);
  const int64_t cols = x.shape(-1);
  const int64_t count = cols == 0 ? 0 : static_cast<int64_t>(x.size()) / cols;
  // The stride of the innermost axis with more than one row, and what follows from it.
  int64_t stride = 0;
  int64_t expected = 0;
  bool uniform = cols <= 1 || x.strides().back() == 1;
  for (int axis = static_cast<int>(x.ndim()) - 2; axis >= 0 && uniform; --axis) {
    if (x.shape(axis) == 1) {
      continue;
    }
    if (stride == 0) {
      stride = x.strides()[static_cast<size_t>(axis)];
      expected = stride;
      uniform = stride >= cols;
    }
    uniform = uniform && x.strides()[static_cast<size_t>(axis)] == expected;
    expected *= x.shape(axis);
  }
  stride = stride == 0 ? cols : stride;
  if (!uniform) {
    return {copied(x), cpu_dtype(x.dtype()), count, cols};
  }
  return {x.data<uint8_t>(), cpu_dtype(x.dtype()), count, stride};
}

cpu::AffineMatrix
CpuCall::matrix(const std::vector<mx::array>& inputs, size_t first, Packing packing) {
  const mx::array& scales = inputs[first + 1];
  return {
      contiguous(inputs[first]),
      contiguous(scales),
      contiguous(inputs[first + 2]),
      cpu_dtype(scales.dtype()),
      packing.bits,
      packing.group_size,
      scales.shape(0),
      static_cast<int64_t>(scales.shape(1)) * packing.group_size};
}

uint8_t* CpuCall::output(mx::array& out, mx::Strides strides) {
  bool row_contiguous = true;
  int64_t expected = 1;
  for (size_t axis = out.ndim(); axis-- > 0;) {
    row_contiguous = row_contiguous && (out.shape(axis) == 1 || strides[axis] == expected);
    expected *= out.shape(axis);
  }
  const mx::array::Flags flags = {true, row_contiguous, out.size() <= 1};
  out.set_data(mx::allocator::malloc(out.nbytes()), out.size(), std::move(strides), flags);
  encoder_.set_output_array(out);
  outputs_.emplace_back(out.data<uint8_t>(), out.nbytes());
  return out.data<uint8_t>();
}

uint8_t* CpuCall::output(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  encoder_.set_output_array(out);
  outputs_.emplace_back(out.data<uint8_t>(), out.nbytes());
  return out.data<uint8_t>();
}

cpu::MutableFloatRows CpuCall::output_rows(mx::array& out) {
  return {output(out), cpu_dtype(out.dtype()), out.shape(-1)};
}

void CpuCall::run(std::function<void()> work) {
  const auto is_empty = [](const auto& output) { return output.second == 0; };
  if (std::all_of(outputs_.begin(), outputs_.end(), is_empty)) {
    return;
  }
  encoder_.dispatch([work = std::move(work), outputs = std::move(outputs_)] {
    try {
      work();
    } catch (...) {
      for (const auto& [data, size] : outputs) {
        std::memset(data, 0xFF, size);
      }
      throw;
    }
  });
}

}  // namespace gemma_surgery::ops
