// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/metal_call.h"

#include "mlx/allocator.h"

namespace gemma_surgery::ops {

namespace {

constexpr int kMostAxes = 8;
constexpr int kCopyThreads = 256;
constexpr int64_t kMostGroupsAcross = 65535;

struct Layout {
  int32_t shape[kMostAxes];
  int64_t strides[kMostAxes];
  int64_t size;
};

}  // namespace

const char* metal_type(mx::Dtype dtype) {
  return dtype == mx::float32 ? "float" : dtype == mx::float16 ? "half" : "bfloat";
}

MetalTypes metal_types(mx::Dtype x, mx::Dtype s, mx::Dtype o) {
  return {metal_type(x), metal_type(s), metal_type(o)};
}

mx::array MetalCall::contiguous(const mx::array& x) {
  if (x.flags().row_contiguous || x.size() == 0) {
    return x;
  }
  Layout layout = {};
  int axes = 0;
  layout.size = static_cast<int64_t>(x.size());
  for (int axis = 0; axis < static_cast<int>(x.ndim()); ++axis) {
    if (x.shape(axis) == 1) {
      continue;
    }
    if (axes == kMostAxes) {
      fail(
          "metal",
          "need at most " + std::to_string(kMostAxes) +
              " axes in an array that is not contiguous, got " + shape_text(x.shape()));
    }
    layout.shape[axes] = x.shape(axis);
    layout.strides[axes] = x.strides(axis);
    ++axes;
  }
  mx::array copy = temporary(x.shape(), x.dtype());
  const char* type = x.itemsize() == 2 ? "ushort" : "uint";
  use("strided_copy", "strided_copy", {type, type, type}, {{axes}});
  input(x, 0);
  output(copy, 1);
  parameter(layout, 2);
  const int64_t groups = groups_for(layout.size, kCopyThreads);
  const int64_t across = std::min(groups, kMostGroupsAcross);
  dispatch(across, groups_for(groups, across), kCopyThreads);
  return copy;
}

void MetalCall::allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
}

mx::array MetalCall::temporary(mx::Shape shape, mx::Dtype dtype) {
  mx::array made(std::move(shape), dtype, nullptr, {});
  allocate(made);
  encoder_.add_temporary(made);
  return made;
}

void MetalCall::use(
    const std::string& file,
    const std::string& kernel,
    const MetalTypes& types,
    const MetalConstants& constants) {
  const std::string library_name =
      "gemma_surgery_" + file + "_" + types.x + "_" + types.s + "_" + types.o;
  MTL::Library* library =
      device_.get_library(library_name, [&] { return metal_source(file, types); });
  std::string name = kernel;
  mx::metal::MTLFCList list;
  // One byte each for the flags, which outlive this loop.
  std::vector<uint8_t> flags(constants.size());
  for (size_t i = 0; i < constants.size(); ++i) {
    const MetalConstant& constant = constants[i];
    flags[i] = static_cast<uint8_t>(constant.value);
    if (constant.is_bool) {
      list.emplace_back(&flags[i], MTL::DataType::DataTypeBool, i);
    } else {
      list.emplace_back(&constant.value, MTL::DataType::DataTypeInt, i);
    }
    name += "_" + std::to_string(constant.value);
  }
  encoder_.set_compute_pipeline_state(device_.get_kernel(kernel, library, name, list));
}

void MetalCall::dispatch(int64_t groups_x, int64_t groups_y, int threads) {
  encoder_.dispatch_threadgroups(
      MTL::Size(static_cast<size_t>(groups_x), static_cast<size_t>(groups_y), 1),
      MTL::Size(static_cast<size_t>(threads), 1, 1));
}

}  // namespace gemma_surgery::ops
