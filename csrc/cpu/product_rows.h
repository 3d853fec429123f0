// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products of few rows of x: every packed code is read from memory once and unfolded in
// registers. Lanes hold neighbouring codes of one row of the matrix; they are summed to
// one integer per group, groups become float32 and are added in order.

#pragma once

#include "cpu/dot.h"
#include "cpu/fixed_point.h"

namespace gemma_surgery::cpu::GS_ISA {

// How far ahead of their use packed codes, and scales and biases, are asked for.
constexpr int64_t kFarBytes = 8192;
constexpr int64_t kNearBytes = 1024;
constexpr int64_t kNearParams = 512;

// How a group lies in vectors of codes, for one width and group size.
template <int kBits, int kGroup>
struct GroupLayout {
  // Lanes that one group covers when vectors of a step are added lane by lane.
  static constexpr int kLanes = kGroup / (4 * kUnfolded<kBits>);
  // Steps that share a sum because a group is longer than a vector.
  static constexpr int kSteps = kLanes > kWidth ? kLanes / kWidth : 1;
  // Sums whose lanes are added until each lane is a group: a power of two.
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
GS_INLINE void load_step(const uint8_t* from, int step, Bytes* codes) {
  if constexpr (kIsPacked) {
    const uint8_t* packed = from + (int64_t)step * kStepBytes<kBits>;
    prefetch_far(packed + kFarBytes);
    prefetch(packed + kNearBytes);
    unfold<kBits>(packed, codes);
  } else {
    for (int s = 0; s < kUnfolded<kBits>; ++s) {
      codes[s] = load<Bytes>(from + ((int64_t)step * kUnfolded<kBits> + s) * kBytes);
    }
  }
}

// Sum `sum` of a chunk for each plane. Digits of a chunk are [steps, unfolded, planes, kBytes].
template <int kBits, int kGroup, int kPlanes, bool kIsPacked>
GS_INLINE void plane_sums(const uint8_t* from, const int8_t* digits, int sum, Ints* planes) {
  using Layout = GroupLayout<kBits, kGroup>;
#pragma GCC unroll 3
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = Ints{};
  }
#pragma GCC unroll 8
  for (int i = 0; i < Layout::kSteps; ++i) {
    const int step = sum * Layout::kSteps + i;
    Bytes codes[kUnfolded<kBits>];
    load_step<kBits, kIsPacked>(from, step, codes);
#pragma GCC unroll 4
    for (int s = 0; s < kUnfolded<kBits>; ++s) {
      const int8_t* at = digits + ((int64_t)step * kUnfolded<kBits> + s) * kPlanes * kBytes;
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes; ++plane) {
        planes[plane] = dot4<kBits>(planes[plane], codes[s], load<Bytes>(at + plane * kBytes));
      }
    }
  }
}

template <int kBits, int kGroup, int kPlanes, bool kIsPacked>
GS_INLINE GroupSums lane_sums(const uint8_t* from, const int8_t* digits, int sum) {
  Ints planes[kPlanes];
  plane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, sum, planes);
  if constexpr (kPlanes == 1) {
    return {planes[0], Ints{}};
  } else if constexpr (kPlanes == 2) {
    return {(planes[0] << 8) + planes[1], Ints{}};
  } else {
    return {(planes[0] << 8) + planes[1], planes[2]};
  }
}

template <int kLevel, int kPlanes>
GS_INLINE GroupSums fold_sums(const GroupSums& a, const GroupSums& b) {
  GroupSums sums = {fold<kLevel>(a.upper, b.upper), Ints{}};
  if constexpr (kPlanes == 3) {
    sums.lower = fold<kLevel>(a.lower, b.lower);
  }
  return sums;
}

// `lane_sums` of `sum` and sum + 1, joined by level 0 of `fold`.
template <int kBits, int kGroup, int kPlanes, bool kIsPacked>
GS_INLINE GroupSums lane_sum_pairs(const uint8_t* from, const int8_t* digits, int sum) {
#if defined(__AVX512VNNI__)
  // Adding pairs of 16 bits takes fewer instructions, and weighs the planes on the way.
  constexpr int kLargest =
      4 * kUnfolded<kBits> * GroupLayout<kBits, kGroup>::kSteps * ((1 << kBits) - 1) * 128;
  if constexpr (kLargest < 1 << 15) {
    Ints a[kPlanes];
    Ints b[kPlanes];
    plane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, sum, a);
    plane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, sum + 1, b);
    GroupSums sums = {fold_narrow<kPlanes == 1 ? 1 : 256>(Ints{}, a[0], b[0]), Ints{}};
    if constexpr (kPlanes > 1) {
      sums.upper = fold_narrow<1>(sums.upper, a[1], b[1]);
    }
    if constexpr (kPlanes > 2) {
      sums.lower = fold_narrow<1>(Ints{}, a[2], b[2]);
    }
    return sums;
  }
#endif
  return fold_sums<0, kPlanes>(
      lane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, sum),
      lane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, sum + 1));
}

// Unrolled where every saved load counts: on the fastest instruction sets the compiler may
// take its time, on the others a few instructions per product make up for it.
#if (defined(__AVX512VNNI__) || defined(GS_NEON)) && !defined(GS_SANITIZED)
constexpr bool kIsUnrolled = true;
#else
constexpr bool kIsUnrolled = false;
#endif

// Sums `first` .. first + 2^kLevels of a chunk after kLevels of `fold`.
template <int kBits, int kGroup, int kPlanes, bool kIsPacked, int kLevels>
GS_INLINE GroupSums chunk_sums(const uint8_t* from, const int8_t* digits, int first) {
  if constexpr (kLevels == 0) {
    return lane_sums<kBits, kGroup, kPlanes, kIsPacked>(from, digits, first);
  } else if constexpr (kLevels == 1) {
    return lane_sum_pairs<kBits, kGroup, kPlanes, kIsPacked>(from, digits, first);
  } else {
    // Depth first, so that few vectors are alive at once.
    constexpr int kHalf = 1 << (kLevels - 1);
    GroupSums sums[2];
    if constexpr (kIsUnrolled) {
      sums[0] = chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kLevels - 1>(from, digits, first);
      sums[1] =
          chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kLevels - 1>(from, digits, first + kHalf);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < 2; ++i) {
        sums[i] = chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kLevels - 1>(
            from, digits, first + i * kHalf);
      }
    }
    return fold_sums<kLevels - 1, kPlanes>(sums[0], sums[1]);
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
  constexpr int kLevels = __builtin_ctz((unsigned)GroupLayout<kBits, kGroup>::kSums);
  GroupSums sums;
  if constexpr (!kIsHalf) {
    sums = chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kLevels>(from, digits, 0);
  } else {
    const GroupSums half =
        chunk_sums<kBits, kGroup, kPlanes, kIsPacked, kLevels - 1>(from, digits, 0);
    sums = fold_sums<kLevels - 1, kPlanes>(half, half);
  }
  sums.upper = in_order<kLevels>(sums.upper);
  if constexpr (kPlanes == 3) {
    sums.lower = in_order<kLevels>(sums.lower);
  }
  return sums;
}

// One chunk of one row of the matrix against all rows of x.
template <int kBits, int kGroup, int kPlanes, bool kIsOne, bool kIsHalf>
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
  if constexpr (kIsOne) {
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
    load_step<kBits, true>(packed, step, unfolded);
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

// Compiled apart for one row of x: with both ways in one function, registers run short.
template <int kBits, int kGroup, int kPlanes, bool kIsOne>
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
        add_chunk<kBits, kGroup, kPlanes, kIsOne, false>(
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
      prefetch(scales + at + kNearParams);
      prefetch(biases + at + kNearParams);
      const Floats scale = load_stored(w.dtype, scales + at);
      const Floats bias = load_stored(w.dtype, biases + at);
      if (groups - chunk * kWidth <= kWidth / 2) {
        add_chunk<kBits, kGroup, kPlanes, kIsOne, true>(
            from, scale, bias, chunk, x, x_rows, to, partial_stride);
      } else {
        add_chunk<kBits, kGroup, kPlanes, kIsOne, false>(
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

template <int kBits, int kGroup, bool kIsOne>
static RowsLoop rows_loop(int planes) {
  return planes == 1   ? product_rows<kBits, kGroup, 1, kIsOne>
         : planes == 2 ? product_rows<kBits, kGroup, 2, kIsOne>
                       : product_rows<kBits, kGroup, 3, kIsOne>;
}

template <int kBits, int kGroup>
static RowsLoop rows_loop(int planes, bool is_one) {
  return is_one ? rows_loop<kBits, kGroup, true>(planes) : rows_loop<kBits, kGroup, false>(planes);
}

template <int kBits>
static RowsLoop rows_loop(int64_t group_size, int planes, bool is_one) {
  return group_size == 32   ? rows_loop<kBits, 32>(planes, is_one)
         : group_size == 64 ? rows_loop<kBits, 64>(planes, is_one)
                            : rows_loop<kBits, 128>(planes, is_one);
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
      loop = rows_loop<2>(group_size, x.planes, x_rows == 1);
      break;
    case 3:
      loop = rows_loop<3>(group_size, x.planes, x_rows == 1);
      break;
    case 4:
      loop = rows_loop<4>(group_size, x.planes, x_rows == 1);
      break;
    case 5:
      loop = rows_loop<5>(group_size, x.planes, x_rows == 1);
      break;
    case 6:
      loop = rows_loop<6>(group_size, x.planes, x_rows == 1);
      break;
    default:
      loop = rows_loop<8>(group_size, x.planes, x_rows == 1);
  }
  loop(w, first, count, x, x_rows, partial, out, out_stride);
}

}  // namespace gemma_surgery::cpu::GS_ISA
