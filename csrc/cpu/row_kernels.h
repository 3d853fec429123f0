// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Norms, GELU and rotary embedding of one row. Rows are read and written once; in between they
// lie in a float32 buffer in the first-level cache.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/float_math.h"
#include "cpu/sums.h"

namespace gemma_surgery::cpu::GS_ISA {

// The row as float32, with zeros up to a multiple of kLanes.
static void read_row(const Rows& x, int64_t cols, float* row) {
  read_floats(x.dtype, x.data, cols, row);
  fill_zeros(row + cols, (kLanes - cols % kLanes) % kLanes);
}

template <typename Term>
GS_INLINE float sum_row(int64_t cols, const Term& term) {
  Floats sums[kLanes / kWidth] = {};
  for (int64_t i = 0; i < cols; i += kLanes) {
    for (int part = 0; part < kLanes / kWidth; ++part) {
      sums[part] += term(i + part * kWidth);
    }
  }
  return sum_lanes(sums);
}

// Calls body(column) for whole vectors and tail(column) for the columns that are left.
template <typename Body, typename Tail>
GS_INLINE void each_column(int64_t cols, const Body& body, const Tail& tail) {
  int64_t i = 0;
  for (; i + kWidth <= cols; i += kWidth) {
    body(i);
  }
  for (; i < cols; ++i) {
    tail(i);
  }
}

static void rms_norm(
    const Rows& h,
    const Rows& x,
    int64_t cols,
    const float* scale,
    float eps,
    const MutableRows& out,
    float* row) {
  read_row(x, cols, row);
  const float squares = sum_row(cols, [&](int64_t i) {
    const Floats value = load<Floats>(row + i);
    return value * value;
  });
  const float share = 1.0f / __builtin_sqrtf(squares / (float)cols + eps);
  if (scale != nullptr) {
    each_column(
        cols,
        [&](int64_t i) {
          store(row + i, load<Floats>(row + i) * broadcast(share) * load<Floats>(scale + i));
        },
        [&](int64_t i) { row[i] = row[i] * share * scale[i]; });
  } else {
    each_column(
        cols,
        [&](int64_t i) { store(row + i, load<Floats>(row + i) * broadcast(share)); },
        [&](int64_t i) { row[i] *= share; });
  }
  if (h.data != nullptr) {
    const int64_t bytes = stored_bytes(h.dtype);
    each_column(
        cols,
        [&](int64_t i) {
          store(row + i, load_stored(h.dtype, h.data + i * bytes) + load<Floats>(row + i));
        },
        [&](int64_t i) {
          float value;
          read_floats(h.dtype, h.data + i * bytes, 1, &value);
          row[i] += value;
        });
  }
  write_floats(out.dtype, row, cols, out.data);
}

static void layer_norm(
    const Rows& x,
    int64_t cols,
    const float* weight,
    const float* bias,
    float eps,
    const MutableRows& out,
    float* row) {
  read_row(x, cols, row);
  const float mean = sum_row(cols, [&](int64_t i) { return load<Floats>(row + i); }) / (float)cols;
  for (int64_t i = 0; i < cols; ++i) {
    row[i] -= mean;
  }
  const float squares = sum_row(cols, [&](int64_t i) {
    const Floats value = load<Floats>(row + i);
    return value * value;
  });
  const float share = 1.0f / __builtin_sqrtf(squares / (float)cols + eps);
  each_column(
      cols,
      [&](int64_t i) {
        Floats value = load<Floats>(row + i) * broadcast(share);
        value = weight != nullptr ? value * load<Floats>(weight + i) : value;
        store(row + i, bias != nullptr ? value + load<Floats>(bias + i) : value);
      },
      [&](int64_t i) {
        float value = row[i] * share;
        value = weight != nullptr ? value * weight[i] : value;
        row[i] = bias != nullptr ? value + bias[i] : value;
      });
  write_floats(out.dtype, row, cols, out.data);
}

// x / 2 * (1 + tanh(u)) is x / (1 + e^-2u): without the loss of digits where tanh nears -1.
GS_INLINE Floats gelu_of(Floats x) {
  constexpr float kSlope = -2.0f * 0.7978845608028654f;
  const Floats cubed = x * x * x;
  const Floats u = multiply_add(cubed, broadcast(0.044715f), x) * broadcast(kSlope);
  return x / (broadcast(1.0f) + exp_of(u));
}

// Columns in pieces that stay in the first-level cache, so that rows may be of any length.
constexpr int64_t kPiece = (kGeluScratch - kSlack) / 2;

static void
gelu(const Rows& x, const Rows& up, int64_t cols, const MutableRows& out, float* scratch) {
  float* const values = scratch;
  float* const factors = scratch + kPiece;
  for (int64_t begin = 0; begin < cols; begin += kPiece) {
    const int64_t count = cols - begin < kPiece ? cols - begin : kPiece;
    read_floats(x.dtype, x.data + begin * stored_bytes(x.dtype), count, values);
    fill_zeros(values + count, (kLanes - count % kLanes) % kLanes);
    if (up.data != nullptr) {
      read_floats(up.dtype, up.data + begin * stored_bytes(up.dtype), count, factors);
    }
    for (int64_t i = 0; i < count; i += kWidth) {
      const Floats value = gelu_of(load<Floats>(values + i));
      store(values + i, up.data != nullptr ? value * load<Floats>(factors + i) : value);
    }
    write_floats(out.dtype, values, count, out.data + begin * stored_bytes(out.dtype));
  }
}

}  // namespace gemma_surgery::cpu::GS_ISA
