// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// MLX's affine format on the GPU: value = code * scale + bias, codes in one little-endian
// bit stream per row. Source, scale and output types X, S and O are typedefs that the host
// puts in front of this file; bits and group size are function constants of each kernel.

#pragma once

// Codes that one thread takes at a time: 2 * bits bytes, half of the smallest group.
constant constexpr int kChunk = 16;

// The chunk at `packed` as floats; reads exactly kWidth 16-bit words.
template <int kWidth>
inline void unpack_chunk(const device ushort* packed, thread float* codes) {
  ushort words[kWidth];
#pragma clang loop unroll(full)
  for (int i = 0; i < kWidth; ++i) {
    words[i] = packed[i];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < kChunk; ++i) {
    const int word = i * kWidth / 16;
    const int shift = i * kWidth % 16;
    uint window = words[word];
    if (shift + kWidth > 16) {
      window |= uint(words[word + 1]) << 16;
    }
    codes[i] = float((window >> shift) & ((1u << kWidth) - 1u));
  }
}

inline void unpack_chunk(int bits, const device ushort* packed, thread float* codes) {
  if (bits == 2) {
    unpack_chunk<2>(packed, codes);
  } else if (bits == 3) {
    unpack_chunk<3>(packed, codes);
  } else if (bits == 4) {
    unpack_chunk<4>(packed, codes);
  } else if (bits == 5) {
    unpack_chunk<5>(packed, codes);
  } else if (bits == 6) {
    unpack_chunk<6>(packed, codes);
  } else {
    unpack_chunk<8>(packed, codes);
  }
}

// One code of a row; touches its second byte only where the code reaches into it.
inline uint code_at(const device uchar* row, int column, int bits) {
  const uint at = uint(column) * uint(bits);
  const uint shift = at % 8;
  uint window = row[at / 8];
  if (shift + uint(bits) > 8) {
    window |= uint(row[at / 8 + 1]) << 8;
  }
  return (window >> shift) & ((1u << bits) - 1u);
}
