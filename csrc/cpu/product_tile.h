// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products of many rows of x: a panel of the matrix is unfolded once to one byte per code,
// laid out so that a lane is a row of the matrix, and multiplied with tiles of digits.
// A tile keeps all its integer sums in registers for one group, then adds them in float32.

#pragma once

#include "cpu/dot.h"
#include "cpu/product_rows.h"

namespace gemma_surgery::cpu::GS_ISA {

#if defined(__AVX512BW__)
constexpr int kTileDigits = 12;
constexpr int kTileVectors = 2;
#elif defined(GS_NEON)
constexpr int kTileDigits = 6;
constexpr int kTileVectors = 4;
#else
constexpr int kTileDigits = 6;
constexpr int kTileVectors = 2;
#endif
constexpr int kTileCols = kTileVectors * kWidth;

// Packed bytes of a row from `from` to its end, as one step; zeros after the end.
template <int kBits>
GS_INLINE Words load_step(const uint8_t* from, int64_t left) {
  static_assert(kStepBytes<kBits> == kBytes);
  if (left >= kBytes) {
    return load<Words>(from);
  }
  uint8_t tail[kBytes] = {};
  __builtin_memcpy(tail, from, (size_t)left);
  return load<Words>(tail);
}

// One step of kWidth rows: quads of codes [kWidth * kUnfolded, kWidth, 4] in the panel.
template <int kBits>
GS_INLINE void pack_step(const uint8_t* const* rows, int64_t offset, int64_t left, uint8_t* panel) {
  Floats block[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if constexpr (kStepBytes<kBits> == kBytes) {
      block[i] = float_from_bits(load_step<kBits>(rows[i] + offset, left));
    } else {
      uint8_t packed[kStepBytes<kBits>] = {};
      const int64_t bytes = left < kStepBytes<kBits> ? left : kStepBytes<kBits>;
      __builtin_memcpy(packed, rows[i] + offset, (size_t)bytes);
      Bytes codes;
      unfold<kBits>(packed, &codes);
      block[i] = (Floats)codes;
    }
  }
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    const Words quads = bits_of(block[i]);
    constexpr int kVectors = kUnfolded<kBits>;
    constexpr uint32_t kMask = 0x01010101u * ((1u << kBits) - 1);
#pragma GCC unroll 4
    for (int s = 0; s < kVectors; ++s) {
      const Words codes = kVectors == 1 ? quads : (quads >> (uint32_t)(kBits * s)) & kMask;
      store(panel + (i * kVectors + s) * kTileVectors * kBytes, codes);
    }
  }
}

template <int kBits>
static void pack_codes_of(const AffineMatrix& w, int64_t first, uint8_t* codes) {
  const int64_t row_bytes = w.cols * kBits / 8;
  for (int v = 0; v < kTileVectors; ++v) {
    const uint8_t* rows[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      // Rows beyond the end repeat the last one; their products are never looked at.
      const int64_t row = first + v * kWidth + i;
      rows[i] = w.weight + (row < w.rows ? row : w.rows - 1) * row_bytes;
    }
    uint8_t* panel = codes + v * kBytes;
    for (int64_t offset = 0; offset < row_bytes; offset += kStepBytes<kBits>) {
      pack_step<kBits>(rows, offset, row_bytes - offset, panel);
      panel += kWidth * kUnfolded<kBits> * kTileVectors * kBytes;
    }
  }
}

// [groups, kTileCols] float32 from kTileCols rows of stored scales or biases.
static void pack_params(const AffineMatrix& w, const uint8_t* params, int64_t first, float* out) {
  const int64_t groups = w.cols / w.group_size;
  const int64_t bytes = stored_bytes(w.dtype);
  for (int64_t n = 0; n < kTileCols; n += kWidth) {
    for (int64_t group = 0; group < groups; group += kWidth) {
      const int64_t count = groups - group < kWidth ? groups - group : kWidth;
      Floats block[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int64_t row = first + n + i < w.rows ? first + n + i : w.rows - 1;
        uint8_t values[kWidth * sizeof(float)] = {};
        __builtin_memcpy(values, params + (row * groups + group) * bytes, (size_t)(count * bytes));
        block[i] = load_stored(w.dtype, values);
      }
      transpose(block);
      for (int64_t i = 0; i < count; ++i) {
        store(out + (group + i) * kTileCols + n, block[i]);
      }
    }
  }
}

static void
pack_panel(const AffineMatrix& w, int64_t first, uint8_t* codes, float* scales, float* biases) {
  switch (w.bits) {
    case 2:
      pack_codes_of<2>(w, first, codes);
      break;
    case 3:
      pack_codes_of<3>(w, first, codes);
      break;
    case 4:
      pack_codes_of<4>(w, first, codes);
      break;
    case 5:
      pack_codes_of<5>(w, first, codes);
      break;
    case 6:
      pack_codes_of<6>(w, first, codes);
      break;
    default:
      pack_codes_of<8>(w, first, codes);
  }
  pack_params(w, w.scales, first, scales);
  pack_params(w, w.biases, first, biases);
}

using TileLoop = void (*)(
    const uint8_t*,
    const float*,
    const float*,
    int64_t,
    int64_t,
    const FixedPoint&,
    float*,
    int64_t);

template <int kBits, int kPlanes>
static void product_tile(
    const uint8_t* codes,
    const float* scales,
    const float* biases,
    int64_t groups,
    int64_t group_size,
    const FixedPoint& x,
    float* out,
    int64_t out_stride) {
  constexpr int kRows = kTileDigits / kPlanes;
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kTileVectors; ++v) {
      store(out + m * out_stride + v * kWidth, Floats{});
    }
  }
  const int8_t* digits = x.digits;
  for (int64_t group = 0; group < groups; ++group) {
    Ints sums[kTileDigits][kTileVectors] = {};
    for (int64_t quad = 0; quad < group_size / 4; ++quad) {
      Bytes panel[kTileVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        panel[v] = load<Bytes>(codes + v * kBytes);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kTileDigits; ++r) {
        const Bytes four = repeat4(digits + 4 * r);
#pragma GCC unroll 4
        for (int v = 0; v < kTileVectors; ++v) {
          sums[r][v] = dot4<kBits>(sums[r][v], panel[v], four);
        }
      }
      codes += kTileVectors * kBytes;
      digits += kTileDigits * 4;
    }
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
      const Floats unit = splat(x.units[m * x.padded_groups + group]);
      const Floats sum = splat(x.sums[m * x.padded_groups + group]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        Ints upper = sums[m * kPlanes][v];
        Ints lower = Ints{};
        if constexpr (kPlanes >= 2) {
          upper = (upper << 8) + sums[m * kPlanes + 1][v];
        }
        if constexpr (kPlanes == 3) {
          lower = sums[m * kPlanes + 2][v];
        }
        float* to = out + m * out_stride + v * kWidth;
        const int64_t at = group * kTileCols + v * kWidth;
        const Floats product = group_product<kPlanes>(
            upper, lower, unit, sum, load<Floats>(scales + at), load<Floats>(biases + at));
        store(to, load<Floats>(to) + product);
      }
    }
  }
}

template <int kBits>
static TileLoop tile_loop(int planes) {
  return planes == 1   ? product_tile<kBits, 1>
         : planes == 2 ? product_tile<kBits, 2>
                       : product_tile<kBits, 3>;
}

static void tile(
    const uint8_t* codes,
    const float* scales,
    const float* biases,
    int32_t bits,
    int64_t groups,
    int64_t group_size,
    const FixedPoint& x,
    float* out,
    int64_t out_stride) {
  // Only whether pairs of codes fit 16 bits matters here.
  const TileLoop loop = bits == 8 ? tile_loop<8>(x.planes) : tile_loop<4>(x.planes);
  loop(codes, scales, biases, groups, group_size, x, out, out_stride);
}

}  // namespace gemma_surgery::cpu::GS_ISA
