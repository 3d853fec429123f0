// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// An array of any strides in row-major order: out[i] = in at the place of element i.
// Grid: threads over elements. S: ushort or uint, the size of an element; at most 8 axes with
// more than one index each. Moves: every element once each way.

constant int kAxes [[function_constant(0)]];

constant constexpr int kMostAxes = 8;

struct Layout {
  int shape[kMostAxes];
  long strides[kMostAxes];
  long size;
};

[[kernel]] void strided_copy(
    const device S* in [[buffer(0)]],
    device S* out [[buffer(1)]],
    constant Layout& layout [[buffer(2)]],
    uint2 position [[thread_position_in_grid]],
    uint2 threads [[threads_per_grid]]) {
  const long index = long(position.y) * long(threads.x) + long(position.x);
  if (index >= layout.size) {
    return;
  }
  long rest = index;
  long place = 0;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    place += rest % layout.shape[axis] * layout.strides[axis];
    rest /= layout.shape[axis];
  }
  out[index] = in[place];
}
