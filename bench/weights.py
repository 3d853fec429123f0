"""Random affine matrices that lie one behind the other in memory, as the layers of a model do.

A decode step reads each weight once. A bench that read one matrix again and again would read a cache: here
every call gets the next matrix of a pool that is larger than the caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from shapes import BITS, GROUP_SIZE

POOL_BYTES = 5 << 28
# Codes 0 to 15 around their middle: values of a standard deviation of 0.02.
SCALE, BIAS = 0.0043, -0.0325

Affine = tuple[mx.array, mx.array, mx.array]


class WeightPool:
    """Codes, scales and biases of 4-bit matrices, taken in turn from one large allocation each."""

    def __init__(self, pool_bytes: int = POOL_BYTES) -> None:
        block = np.random.default_rng(0).integers(0, 2**32, pool_bytes // 4 // 16, np.uint32)
        self._codes = mx.tile(mx.array(block), 16)
        groups = self._codes.size * 32 // BITS // GROUP_SIZE
        self._factors = {}
        for dtype in (mx.bfloat16, mx.float32):
            spread = mx.random.uniform(0.9, 1.1, (groups,))
            self._factors[dtype] = (spread * SCALE).astype(dtype), (spread * BIAS).astype(dtype)
        mx.eval(self._codes, self._factors)

    def matrices(self, rows: int, cols: int, dtype: mx.Dtype) -> list[Affine]:
        """All matrices of that shape that the pool holds, at least two."""
        words, groups = rows * cols * BITS // 32, rows * cols // GROUP_SIZE
        count = self._codes.size // words
        if count < 2:
            raise ValueError(f"need a pool of two matrices [{rows}, {cols}], got {self._codes.nbytes} bytes")
        scales, biases = self._factors[dtype]
        found = [
            (
                self._codes[i * words : (i + 1) * words].reshape(rows, -1),
                scales[i * groups : (i + 1) * groups].reshape(rows, -1),
                biases[i * groups : (i + 1) * groups].reshape(rows, -1),
            )
            for i in range(count)
        ]
        mx.eval(found)
        return found

    def endless(self, rows: int, cols: int, dtype: mx.Dtype) -> Iterator[Affine]:
        """The same, round and round."""
        return itertools.cycle(self.matrices(rows, cols, dtype))


def activations(*shape: int, dtype: mx.Dtype) -> mx.array:
    """Normal random numbers."""
    values = mx.random.normal(shape).astype(dtype)
    mx.eval(values)
    return values
