// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Takes the place of MLX's header where eval_gpu runs without a GPU: the same calls, but a
// dispatch hands kernel source, constants and buffers to a function of the test.

#pragma once

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace MTL {

struct Size {
  size_t sizes[3];
  Size(size_t x, size_t y, size_t z) : sizes{x, y, z} {}
};

enum class DataType { DataTypeBool, DataTypeInt };

struct Library {
  std::string name;
  std::string source;
};

struct ComputePipelineState {
  const Library* library;
  std::string kernel;
  std::map<int, int> constants;
};

}  // namespace MTL

extern "C" {

struct Dispatch {
  const char* library;
  const char* source;
  const char* kernel;
  int constant_count;
  int constant_indices[16];
  int constants[16];
  int buffer_count;
  void* data[16];
  size_t sizes[16];
  int writable[16];
  unsigned grid[3];
  unsigned group[3];
};

// Set by the test; 0 when the dispatch went well.
extern int (*on_dispatch)(const Dispatch*);
}

namespace mlx::core::metal {

using MTLFCList = std::vector<std::tuple<const void*, MTL::DataType, size_t>>;

class CommandEncoder {
 public:
  void set_compute_pipeline_state(MTL::ComputePipelineState* kernel) {
    kernel_ = kernel;
  }

  void set_input_array(const array& a, int index, int64_t offset = 0) {
    auto* data = const_cast<char*>(a.data<char>()) + offset;
    bind(index, data, a.data_size() * a.itemsize() - static_cast<size_t>(offset), false);
  }

  void set_output_array(array& a, int index, int64_t offset = 0) {
    set_input_array(a, index, offset);
    dispatch_.writable[index] = 1;
  }

  template <typename T>
  void set_bytes(const T& value, int index) {
    bytes_[index].assign(
        reinterpret_cast<const char*>(&value), reinterpret_cast<const char*>(&value) + sizeof(T));
    bind(index, bytes_[index].data(), sizeof(T), false);
  }

  void add_temporary(array a) {
    temporaries_.push_back(std::move(a));
  }

  void dispatch_threadgroups(MTL::Size grid, MTL::Size group) {
    dispatch_.library = kernel_->library->name.c_str();
    dispatch_.source = kernel_->library->source.c_str();
    dispatch_.kernel = kernel_->kernel.c_str();
    dispatch_.constant_count = 0;
    for (const auto& [index, value] : kernel_->constants) {
      dispatch_.constant_indices[dispatch_.constant_count] = index;
      dispatch_.constants[dispatch_.constant_count++] = value;
    }
    for (int axis = 0; axis < 3; ++axis) {
      dispatch_.grid[axis] = static_cast<unsigned>(grid.sizes[axis]);
      dispatch_.group[axis] = static_cast<unsigned>(group.sizes[axis]);
    }
    const int error = on_dispatch(&dispatch_);
    dispatch_ = {};
    if (error) {
      throw std::runtime_error("the dispatch failed");
    }
  }

  void clear() {
    temporaries_.clear();
    dispatch_ = {};
  }

 private:
  void bind(int index, void* data, size_t size, bool writable) {
    dispatch_.buffer_count = std::max(dispatch_.buffer_count, index + 1);
    dispatch_.data[index] = data;
    dispatch_.sizes[index] = size;
    dispatch_.writable[index] = writable;
  }

  MTL::ComputePipelineState* kernel_ = nullptr;
  Dispatch dispatch_ = {};
  std::map<int, std::vector<char>> bytes_;
  std::vector<array> temporaries_;
};

// Caches by name, as MLX's does: a name that leaves out a constant shows.
class Device {
 public:
  MTL::Library* get_library(const std::string& name, const std::function<std::string()>& builder) {
    auto [found, is_new] = libraries_.try_emplace(name);
    if (is_new) {
      found->second = {name, builder()};
    }
    return &found->second;
  }

  MTL::ComputePipelineState* get_kernel(
      const std::string& kernel,
      MTL::Library* library,
      const std::string& name,
      const MTLFCList& constants) {
    auto [found, is_new] = kernels_.try_emplace({library->name, name});
    if (is_new) {
      found->second = {library, kernel, {}};
      for (const auto& [value, type, index] : constants) {
        found->second.constants[static_cast<int>(index)] = type == MTL::DataType::DataTypeBool
                                                               ? *static_cast<const bool*>(value)
                                                               : *static_cast<const int*>(value);
      }
    }
    return &found->second;
  }

 private:
  std::map<std::string, MTL::Library> libraries_;
  std::map<std::pair<std::string, std::string>, MTL::ComputePipelineState> kernels_;
};

inline Device& device(mlx::core::Device) {
  static Device the_device;
  return the_device;
}

inline CommandEncoder& get_command_encoder(Stream) {
  static CommandEncoder the_encoder;
  return the_encoder;
}

}  // namespace mlx::core::metal
