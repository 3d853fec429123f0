// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "primitives/affine.h"

#include <limits>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "mlx/ops.h"
#include "mlx/utils.h"

namespace gemma_surgery::ops {

void fail(const char* where, const std::string& message) {
  throw std::invalid_argument(std::string("[") + where + "] " + message);
}

std::string shape_text(const mx::Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

std::string dtype_text(mx::Dtype dtype) {
  std::ostringstream text;
  text << dtype;
  return text.str();
}

void check_float(const char* where, const char* name, mx::Dtype dtype) {
  if (dtype != mx::float32 && dtype != mx::float16 && dtype != mx::bfloat16) {
    fail(
        where,
        std::string("need float32, float16 or bfloat16 for `") + name + "`, got " +
            dtype_text(dtype));
  }
}

int affine_cols(const char* where, const AffineArrays& matrix, const Packing& packing) {
  const auto [bits, group] = packing;
  if (bits < 2 || bits > 8 || bits == 7) {
    fail(where, "need 2, 3, 4, 5, 6 or 8 bits, got " + std::to_string(bits));
  }
  if (group != 32 && group != 64 && group != 128) {
    fail(where, "need group size 32, 64 or 128, got " + std::to_string(group));
  }
  const auto& [weight, scales, biases] = matrix;
  if (weight.dtype() != mx::uint32 || weight.ndim() != 2) {
    fail(
        where,
        "need packed codes uint32 [rows, words] for `weight`, got " + dtype_text(weight.dtype()) +
            " " + shape_text(weight.shape()));
  }
  check_float(where, "scales", scales.dtype());
  if (scales.ndim() != 2 || scales.shape(0) != weight.shape(0)) {
    fail(
        where,
        "need scales [" + std::to_string(weight.shape(0)) + ", groups], one row for each of " +
            "`weight`, got " + shape_text(scales.shape()));
  }
  if (biases.shape() != scales.shape() || biases.dtype() != scales.dtype()) {
    fail(
        where,
        "need biases like the scales, " + dtype_text(scales.dtype()) + " " +
            shape_text(scales.shape()) + ", got " + dtype_text(biases.dtype()) + " " +
            shape_text(biases.shape()));
  }
  const int64_t cols = static_cast<int64_t>(scales.shape(1)) * group;
  if (cols == 0 || cols * bits / 32 != weight.shape(1) || cols > std::numeric_limits<int>::max()) {
    fail(
        where,
        "need " + std::to_string(cols * bits / 32) + " words per row for " +
            std::to_string(scales.shape(1)) + " groups of " + std::to_string(group) + " codes of " +
            std::to_string(bits) + " bits, got `weight` " + shape_text(weight.shape()));
  }
  return static_cast<int>(cols);
}

void check_rows(const char* where, const char* name, const mx::array& x, int cols) {
  check_float(where, name, x.dtype());
  if (x.ndim() == 0 || x.shape(-1) != cols) {
    fail(
        where,
        std::string("need a last dimension of ") + std::to_string(cols) + " for `" + name +
            "`, got " + shape_text(x.shape()));
  }
}

namespace {

bool is_known(const mx::array& x) {
  return x.is_available() && !x.is_tracer() && x.flags().row_contiguous;
}

// Calls work(pointer to the values) with their integer type.
template <typename Work>
void with_integers(const mx::array& x, const Work& work) {
  switch (x.dtype().val()) {
    case mx::Dtype::Val::int8:
      return work(x.data<int8_t>());
    case mx::Dtype::Val::int16:
      return work(x.data<int16_t>());
    case mx::Dtype::Val::int32:
      return work(x.data<int32_t>());
    case mx::Dtype::Val::int64:
      return work(x.data<int64_t>());
    case mx::Dtype::Val::uint8:
      return work(x.data<uint8_t>());
    case mx::Dtype::Val::uint16:
      return work(x.data<uint16_t>());
    case mx::Dtype::Val::uint32:
      return work(x.data<uint32_t>());
    case mx::Dtype::Val::uint64:
      return work(x.data<uint64_t>());
    default:
      return;
  }
}

}  // namespace

void check_known_indices(
    const char* where,
    const char* name,
    const mx::array& x,
    int64_t first,
    int64_t last) {
  if (!is_known(x)) {
    return;
  }
  with_integers(x, [&](const auto* values) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::cmp_less(values[i], first) || std::cmp_greater(values[i], last)) {
        fail(
            where,
            std::string("need ") + name + " between " + std::to_string(first) + " and " +
                std::to_string(last) + ", got " + std::to_string(values[i]) + " at position " +
                std::to_string(i));
      }
    }
  });
}

mx::array as_indices(const char* where, const char* name, const mx::array& x, mx::Stream stream) {
  if (x.dtype() == mx::int32) {
    return x;
  }
  if (!mx::issubdtype(x.dtype(), mx::integer)) {
    fail(where, std::string("need integers for `") + name + "`, got " + dtype_text(x.dtype()));
  }
  // -2^31 and 2^31 - 1 are no index of anything.
  constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
  constexpr int32_t kHighest = std::numeric_limits<int32_t>::max();
  if (is_known(x)) {
    // Three ops fewer on the way to the first token.
    std::vector<int32_t> indices(x.size());
    with_integers(x, [&](const auto* values) {
      for (size_t i = 0; i < indices.size(); ++i) {
        indices[i] = std::cmp_less(values[i], kLowest)       ? kLowest
                     : std::cmp_greater(values[i], kHighest) ? kHighest
                                                             : static_cast<int32_t>(values[i]);
      }
    });
    return mx::array(indices.begin(), x.shape(), mx::int32);
  }
  switch (x.dtype().val()) {
    case mx::Dtype::Val::int64: {
      const mx::array bounded =
          mx::clip(x, mx::array(kLowest, mx::int32), mx::array(kHighest, mx::int32), stream);
      return mx::astype(bounded, mx::int32, stream);
    }
    case mx::Dtype::Val::uint32:
    case mx::Dtype::Val::uint64: {
      const mx::array bound = mx::astype(mx::array(kHighest, mx::int32), x.dtype(), stream);
      return mx::astype(mx::minimum(x, bound, stream), mx::int32, stream);
    }
    default:
      return mx::astype(x, mx::int32, stream);
  }
}

mx::Shape with_last(const mx::Shape& shape, int last) {
  mx::Shape result(shape.begin(), shape.end());
  result.back() = last;
  return result;
}

mx::Shape without_last(const mx::Shape& shape) {
  return mx::Shape(shape.begin(), shape.end() - 1);
}

std::vector<mx::array> rows_in_front(
    const char* where,
    std::vector<mx::array> inputs,
    const std::vector<int>& axes,
    size_t batched,
    mx::Stream stream) {
  int size = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0 && i >= batched) {
      fail(where, "need one matrix for all under vmap, got one for each");
    }
    if (axes[i] >= 0) {
      size = inputs[i].shape(axes[i]);
      inputs[i] = mx::moveaxis(inputs[i], axes[i], 0, stream);
    }
  }
  for (size_t i = 0; i < batched; ++i) {
    if (axes[i] < 0) {
      mx::Shape shape = inputs[i].shape();
      shape.insert(shape.begin(), size);
      inputs[i] = mx::broadcast_to(inputs[i], shape, stream);
    }
  }
  return inputs;
}

}  // namespace gemma_surgery::ops
