// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Rotary embedding of one row, and its angles: position / period in float64, reduced by multiples
// of pi / 2 in two parts, sine and cosine as Taylor series up to r^15 and r^16, which leave less
// than 2^-51. Only multiplications and additions: the same bits on every instruction set.

#pragma once

#include "cpu/float_functions.h"
#include "cpu/float_math.h"

namespace gemma_surgery::cpu::GS_ISA {

// Adding and taking away 1.5 * 2^52 rounds |value| < 2^51 to the nearest integer.
constexpr double kDoubleRounder = 0x1.8p+52;

// |angle| < 2^31: the first part of pi / 2 has 22 bits, so that quarters * part is exact.
GS_INLINE void cos_sin_of(double angle, float* cosine, float* sine) {
  const double shifted = angle * 0x1.45f306dc9c883p-1 + kDoubleRounder;
  const double quarters = shifted - kDoubleRounder;
  const uint64_t quadrant = load<uint64_t>(&shifted);
  double r = angle - quarters * 0x1.921fb0p+0;
  r = r - quarters * 0x1.5110b0p-22;
  r = r - quarters * 0x1.18469898cc517p-44;
  const double s = r * r;
  double odd = -0x1.ae7f3e733b81fp-41;
  odd = odd * s + 0x1.6124613a86d09p-33;
  odd = odd * s - 0x1.ae64567f544e4p-26;
  odd = odd * s + 0x1.71de3a556c734p-19;
  odd = odd * s - 0x1.a01a01a01a01ap-13;
  odd = odd * s + 0x1.1111111111111p-7;
  odd = odd * s - 0x1.5555555555555p-3;
  odd = r + r * (s * odd);
  double even = 0x1.ae7f3e733b81fp-45;
  even = even * s - 0x1.93974a8c07c9dp-37;
  even = even * s + 0x1.1eed8eff8d898p-29;
  even = even * s - 0x1.27e4fb7789f5cp-22;
  even = even * s + 0x1.a01a01a01a01ap-16;
  even = even * s - 0x1.6c16c16c16c17p-10;
  even = even * s + 0x1.5555555555555p-5;
  even = even * s - 0.5;
  even = 1.0 + s * even;
  const bool swap = quadrant & 1;
  const double c = swap ? odd : even;
  const double d = swap ? even : odd;
  *cosine = (float)((quadrant + 1) & 2 ? -c : c);
  *sine = (float)(quadrant & 2 ? -d : d);
}

static void rope_angles(const float* periods, int64_t pairs, int64_t position, float* cos_sin) {
  const double at = (double)position;
  for (int64_t i = 0; i < pairs; ++i) {
    cos_sin_of(at / (double)periods[i], cos_sin + i, cos_sin + pairs + i);
  }
}

static void rope_row(
    const Rows& x,
    int64_t dim,
    int64_t pairs,
    const float* cos_sin,
    const MutableRows& out,
    float* row) {
  read_floats(x.dtype, x.data, dim, row);
  const float* const cosines = cos_sin;
  const float* const sines = cos_sin + pairs;
  float* const low = row;
  float* const high = row + pairs;
  int64_t i = 0;
  for (; i + kWidth <= pairs; i += kWidth) {
    const Floats a = load<Floats>(low + i);
    const Floats b = load<Floats>(high + i);
    const Floats cosine = load<Floats>(cosines + i);
    const Floats sine = load<Floats>(sines + i);
    store(low + i, a * cosine - b * sine);
    store(high + i, a * sine + b * cosine);
  }
  for (; i < pairs; ++i) {
    const float a = low[i];
    const float b = high[i];
    low[i] = a * cosines[i] - b * sines[i];
    high[i] = a * sines[i] + b * cosines[i];
  }
  write_floats(out.dtype, row, dim, out.data);
}

}  // namespace gemma_surgery::cpu::GS_ISA
