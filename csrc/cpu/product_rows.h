// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products of few rows of x: every packed code is read from memory once and unfolded in
// registers. Lanes hold neighbouring codes of one row of the matrix; they are summed to
// one integer per group, groups become float32 and are added in order.

#pragma once

#include "cpu/dot.h"
#include "cpu/fixed_point.h"

namespace gemma_surgery::cpu::GS_ISA {

// How far ahead of its use packed memory is asked for.
constexpr int64_t kPrefetchBytes = 4096;

// How a group lies in vectors of codes, for one width and group size.
template <int kBits, int kGroup>
struct GroupLayout {
  // Lanes that one group covers when vectors of a step are added lane by lane.
  static constexpr int kLanes = kGroup / (4 * kUnfolded<kBits>);
  // Steps that share a sum because a group is longer than a vector.
  static constexpr int kSteps = kLanes > kWidth ? kLanes / kWidth : 1;
  // Sums whose lanes are added until each lane is a group.
  static constexpr int kSums = kLanes > kWidth ? kWidth : kLanes;
  // A chunk is one vector of groups.
  static constexpr int kChunkSteps = kSteps * kSums;
  static constexpr int64_t kChunkBytes = (int64_t)kChunkSteps * kStepBytes<kBits>;
  static constexpr int64_t kChunkCodes = (int64_t)kChunkSteps * kStepCodes<kBits>;
  static_assert(kChunkCodes == (int64_t)kGroup * kWidth);
};

// Integer sums of a chunk, one lane per group: upper * 256 + lower, lower only of 3 planes.
struct GroupSums {
  Ints upper;
  Ints lower;
};

// Where a chunk's codes come from: packed memory, or already unfolded.
template <int kBits, bool kIsPacked>
struct Codes {
  const uint8_t* from;

  GS_INLINE void load_step(const Codes& self, int step, Bytes* codes) {
    if constexpr (kIsPacked) {
      unfold<kBits>(self.from + (int64_t)step * kStepBytes<kBits>, codes);
    } else {
      for (int s = 0; s < kUnfolded<kBits>; ++s) {
        codes[s] = load<Bytes>(self.from + ((int64_t)step * kUnfolded<kBits> + s) * kBytes);
      }
    }
  }
};

// Digits of a chunk are [steps, unfolded, planes, kBytes].
template <int kBits, int kGroup, int kPlanes, bool kIsPacked>
GS_INLINE GroupSums lane_sums(const uint8_t* from, const int8_t* digits, int sum) {
  using Layout = GroupLayout<kBits, kGroup>;
  Ints planes[kPlanes] = {};
#pragma GCC unroll 8
  for (int i = 0; i < Layout::kSteps; ++i) {
    const int step = sum * Layout::kSteps + i;
    Bytes codes[kUnfolded<kBits>];
    Codes<kBits, kIsPacked>::load_step({from}, step, codes);
#pragma GCC unroll 4
    for (int s = 0; s < kUnfolded<kBits>; ++s) {
      const int8_t* at = digits + ((int64_t)step * kUnfolded<kBits> + s) * kPlanes * kBytes;
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes; ++plane) {
        planes[plane] = dot4<kBits>(planes[plane], codes[s], load<Bytes>(at + plane * kBytes));
      }
    }
  }
  if constexpr (kPlanes == 1) {
    return {planes[0], Ints{}};
  } else if constexpr (kPlanes == 2) {
    return {(planes[0] << 8) + planes[1], Ints{}};
  } else {
    return {(planes[0] << 8) + planes[1], planes[2]};
  }
}

// Unrolled where every saved load counts: on the fastest instruction sets the compiler may
// take its time, on the others a few instructions per product make up for it.
#if (defined(__AVX512VNNI__) || defined(GS_NEON)) && !defined(GS_SANITIZED)
constexpr bool kIsUnrolled = true;
#else
constexpr bool kIsUnrolled = false;
#endif

// Sums `first` .. first + kCount of a chunk, neighbouring lanes added until each lane is a group.
template <int kBits, int kGroup, int kPlanes, bool kIsPacked, int kCount>
GS_INLINE GroupSums chunk_sums(const uint8_t* from, const int8_t* digits, int first) {
  if constexpr (kCount == 1) {
    return lane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, first);
  } else if constexpr (kIsUnrolled) {
    // Depth first, so that few vectors are alive at once.
    constexpr int kHalf = kCount / 2;
    const GroupSums a = chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kHalf>(from, digits, first);
    const GroupSums b =
        chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kHalf>(from, digits, first + kHalf);
    GroupSums sums = {pair_sums(a.upper, b.upper), Ints{}};
    if constexpr (kPlanes == 3) {
      sums.lower = pair_sums(a.lower, b.lower);
    }
    return sums;
  } else {
    GroupSums sums[kCount];
#pragma GCC unroll 1
    for (int i = 0; i < kCount; ++i) {
      sums[i] = lane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, first + i);
    }
#pragma GCC unroll 1
    for (int count = kCount; count > 1; count /= 2) {
#pragma GCC unroll 1
      for (int i = 0; i < count; i += 2) {
        sums[i / 2].upper = pair_sums(sums[i].upper, sums[i + 1].upper);
        sums[i / 2].lower = pair_sums(sums[i].lower, sums[i + 1].lower);
      }
    }
    return sums[0];
  }
}

// unit * integer * scale + bias * sum, per lane; the one place that fixes the roundings.
template <int kPlanes>
GS_INLINE Floats
group_product(Ints upper, Ints lower, Floats unit, Floats sum, Floats scale, Floats bias) {
  Floats value = to_floats(upper);
  if constexpr (kPlanes == 3) {
    value = value * 256.0f + to_floats(lower);
  }
  return fused(scale, value * unit, bias * sum);
}

// A half chunk has its groups in the lower lanes; what the upper ones hold is never read.
template <int kBits, int kGroup, int kPlanes, bool kIsPacked, bool kIsHalf>
GS_INLINE GroupSums groups_of(const uint8_t* from, const int8_t* digits) {
  constexpr int kSums = GroupLayout<kBits, kGroup>::kSums;
  if constexpr (!kIsHalf) {
    return chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kSums>(from, digits, 0);
  } else {
    const GroupSums half =
        chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kSums / 2>(from, digits, 0);
    GroupSums sums = {pair_sums(half.upper, half.upper), Ints{}};
    if constexpr (kPlanes == 3) {
      sums.lower = pair_sums(half.lower, half.lower);
    }
    return sums;
  }
}

// One chunk of one row of the matrix against all rows of x.
template <int kBits, int kGroup, int kPlanes, bool kIsHalf>
GS_INLINE void add_chunk(
    const uint8_t* packed,
    Floats scale,
    Floats bias,
    int64_t chunk,
    const FixedPoint& x,
    int64_t x_rows,
    float* partial,
    int64_t partial_stride) {
  using Layout = GroupLayout<kBits, kGroup>;
  constexpr int64_t kDigitBytes = Layout::kChunkCodes * kPlanes;
  const int8_t* digits = x.digits + chunk * kDigitBytes;
  const int64_t group = chunk * kWidth;
  if (x_rows == 1) {
    const GroupSums sums = groups_of<kBits, kGroup, kPlanes, true, kIsHalf>(packed, digits);
    store(
        partial + group,
        group_product<kPlanes>(
            sums.upper,
            sums.lower,
            load<Floats>(x.units + group),
            load<Floats>(x.sums + group),
            scale,
            bias));
    return;
  }
  alignas(64) uint8_t codes[Layout::kChunkCodes];
  for (int step = 0; step < Layout::kChunkSteps / (kIsHalf ? 2 : 1); ++step) {
    Bytes unfolded[kUnfolded<kBits>];
    unfold<kBits>(packed + (int64_t)step * kStepBytes<kBits>, unfolded);
    for (int s = 0; s < kUnfolded<kBits>; ++s) {
      store(codes + ((int64_t)step * kUnfolded<kBits> + s) * kBytes, unfolded[s]);
    }
  }
  for (int64_t t = 0; t < x_rows; ++t) {
    const GroupSums sums =
        groups_of<kBits, kGroup, kPlanes, false, kIsHalf>(codes, digits + t * x.row_bytes);
    store(
        partial + t * partial_stride + group,
        group_product<kPlanes>(
            sums.upper,
            sums.lower,
            load<Floats>(x.units + t * x.padded_groups + group),
            load<Floats>(x.sums + t * x.padded_groups + group),
            scale,
            bias));
  }
}

// Per lane the sum of one row of `parts`, in the order of groups.
static Floats sum_in_order(const float* parts, int64_t stride, int64_t groups) {
  Floats total = Floats{};
  for (int64_t start = 0; start < groups; start += kWidth) {
    Floats block[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      block[i] = load<Floats>(parts + i * stride + start);
    }
    transpose(block);
    const int64_t left = groups - start;
    if (left >= kWidth) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        total += block[i];
      }
    } else {
      for (int i = 0; i < left; ++i) {
        total += block[i];
      }
    }
  }
  return total;
}

template <int kBits, int kGroup, int kPlanes>
static void product_rows(
    const AffineMatrix& w,
    int64_t first,
    int64_t count,
    const FixedPoint& x,
    int64_t x_rows,
    float* partial,
    float* out,
    int64_t out_stride) {
  using Layout = GroupLayout<kBits, kGroup>;
  const int64_t param_bytes = stored_bytes(w.dtype);
  const int64_t params_bytes = kWidth * param_bytes;
  const int64_t groups = w.cols / kGroup;
  const int64_t chunks = (groups + kWidth - 1) / kWidth;
  const int64_t row_bytes = w.cols * kBits / 8;
  const int64_t row_partials = x.padded_groups;
  const int64_t partial_stride = kRowBlock * row_partials;
  const uint8_t* end = w.weight + w.rows * row_bytes;
  const uint8_t* params_end = w.scales + w.rows * groups * param_bytes;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* packed = w.weight + (first + i) * row_bytes;
    const uint8_t* scales = w.scales + (first + i) * groups * param_bytes;
    const uint8_t* biases = w.biases + (first + i) * groups * param_bytes;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t at = chunk * params_bytes;
      const uint8_t* from = packed + chunk * Layout::kChunkBytes;
      float* to = partial + i * row_partials;
      // A last chunk may reach into the next row, where digits are zero, but not beyond all.
      if (from + Layout::kChunkBytes > end || scales + at + params_bytes > params_end) {
        alignas(64) uint8_t codes[Layout::kChunkBytes] = {};
        uint8_t tail_scales[kWidth * sizeof(float)] = {};
        uint8_t tail_biases[kWidth * sizeof(float)] = {};
        const int64_t left = (groups - chunk * kWidth) * param_bytes;
        const size_t params = (size_t)(left < params_bytes ? left : params_bytes);
        const size_t rest = (size_t)(end - from);
        __builtin_memcpy(codes, from, rest < sizeof(codes) ? rest : sizeof(codes));
        __builtin_memcpy(tail_scales, scales + at, params);
        __builtin_memcpy(tail_biases, biases + at, params);
        add_chunk<kBits, kGroup, kPlanes, false>(
            codes,
            load_stored(w.dtype, tail_scales),
            load_stored(w.dtype, tail_biases),
            chunk,
            x,
            x_rows,
            to,
            partial_stride);
        continue;
      }
      for (int64_t line = 0; line < Layout::kChunkBytes; line += 64) {
        prefetch(from + kPrefetchBytes + line);
      }
      const Floats scale = load_stored(w.dtype, scales + at);
      const Floats bias = load_stored(w.dtype, biases + at);
      if (groups - chunk * kWidth <= kWidth / 2) {
        add_chunk<kBits, kGroup, kPlanes, true>(
            from, scale, bias, chunk, x, x_rows, to, partial_stride);
      } else {
        add_chunk<kBits, kGroup, kPlanes, false>(
            from, scale, bias, chunk, x, x_rows, to, partial_stride);
      }
    }
  }
  for (int64_t t = 0; t < x_rows; ++t) {
    const float* parts = partial + t * partial_stride;
    float* to = out + t * out_stride;
    alignas(64) float totals[kRowBlock];
    for (int64_t i = 0; i < kRowBlock; i += kWidth) {
      store(totals + i, sum_in_order(parts + i * row_partials, row_partials, groups));
    }
    __builtin_memcpy(to, totals, (size_t)count * sizeof(float));
  }
}

// The digits of one row in the order in which `product_rows` reads them.
template <int kBits>
static void
arrange_row(const int8_t* digits, int64_t cols, int planes, int64_t steps, int8_t* out) {
  constexpr int kCodes = kStepCodes<kBits>;
  constexpr int kVectors = kUnfolded<kBits>;
  for (int64_t step = 0; step < steps; ++step) {
    for (int plane = 0; plane < planes; ++plane) {
      int8_t natural[kCodes];
      const int64_t start = step * kCodes;
      const int64_t left = cols - start < 0 ? 0 : cols - start;
      if (left >= kCodes) {
        __builtin_memcpy(natural, digits + plane * cols + start, kCodes);
      } else {
        __builtin_memset(natural, 0, kCodes);
        __builtin_memcpy(natural, digits + plane * cols + start, (size_t)left);
      }
      for (int s = 0; s < kVectors; ++s) {
        int8_t* to = out + ((step * kVectors + s) * planes + plane) * kBytes;
        for (int i = 0; i < kBytes; ++i) {
          to[i] = natural[i * kVectors + s];
        }
      }
    }
  }
}

static int64_t arranged_steps(int32_t bits, int32_t group_size, int64_t cols) {
  const int64_t chunk = (int64_t)group_size * kWidth;
  const int64_t step = bits == 2 ? kStepCodes<2> : bits == 4 ? kStepCodes<4> : kBytes;
  return (cols + chunk - 1) / chunk * (chunk / step);
}

static int64_t arranged_bytes(int32_t bits, int32_t group_size, int64_t cols, int planes) {
  const int64_t chunk = (int64_t)group_size * kWidth;
  (void)bits;
  return (cols + chunk - 1) / chunk * chunk * planes;
}

static void arrange(
    const int8_t* digits,
    int32_t bits,
    int32_t group_size,
    int64_t cols,
    int planes,
    int8_t* out) {
  const int64_t steps = arranged_steps(bits, group_size, cols);
  switch (bits) {
    case 2:
      return arrange_row<2>(digits, cols, planes, steps, out);
    case 4:
      return arrange_row<4>(digits, cols, planes, steps, out);
    default:
      return arrange_row<8>(digits, cols, planes, steps, out);
  }
}

using RowsLoop = decltype(ProductKernels::rows);

template <int kBits, int kGroup>
static RowsLoop rows_loop(int planes) {
  return planes == 1   ? product_rows<kBits, kGroup, 1>
         : planes == 2 ? product_rows<kBits, kGroup, 2>
                       : product_rows<kBits, kGroup, 3>;
}

template <int kBits>
static RowsLoop rows_loop(int64_t group_size, int planes) {
  return group_size == 32   ? rows_loop<kBits, 32>(planes)
         : group_size == 64 ? rows_loop<kBits, 64>(planes)
                            : rows_loop<kBits, 128>(planes);
}

static void rows(
    const AffineMatrix& w,
    int64_t first,
    int64_t count,
    const FixedPoint& x,
    int64_t x_rows,
    float* partial,
    float* out,
    int64_t out_stride) {
  const int64_t group_size = w.group_size;
  RowsLoop loop = nullptr;
  switch (w.bits) {
    case 2:
      loop = rows_loop<2>(group_size, x.planes);
      break;
    case 3:
      loop = rows_loop<3>(group_size, x.planes);
      break;
    case 4:
      loop = rows_loop<4>(group_size, x.planes);
      break;
    case 5:
      loop = rows_loop<5>(group_size, x.planes);
      break;
    case 6:
      loop = rows_loop<6>(group_size, x.planes);
      break;
    default:
      loop = rows_loop<8>(group_size, x.planes);
  }
  loop(w, first, count, x, x_rows, partial, out, out_stride);
}

}  // namespace gemma_surgery::cpu::GS_ISA
