"""Quantized matrices and their float64 truth in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from gemma_surgery._native import ext

mx.set_default_device(mx.cpu)

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# Half a unit in the last place, relative to the value.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# What 24 and 16 bits of x leave out of a product, relative to the largest one.
ERROR = {"float32": 1e-5, "float16": 5e-5, "bfloat16": 5e-5}
ISAS = ext.available_isas()


@dataclass(frozen=True)
class Table:
    """A random quantized matrix `[rows, cols]`."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.weight, self.scales, self.biases

    @property
    def packing(self) -> dict[str, int]:
        return {"group_size": self.group_size, "bits": self.bits}

    def dense(self) -> np.ndarray:
        """float64 `[rows, cols]`, straight from the definition."""
        packed = np.array(self.weight)
        rows = packed.shape[0]
        stream = np.unpackbits(packed.view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")
        codes = (stream.reshape(rows, -1, self.bits).astype(np.int64) << np.arange(self.bits)).sum(-1)
        scales, biases = (np.repeat(exact(p), self.group_size, 1) for p in (self.scales, self.biases))
        return codes * scales + biases


def exact(x: mx.array) -> np.ndarray:
    """The values as float64."""
    return np.array(x.astype(mx.float32)).astype(np.float64)


def raw(x: mx.array) -> np.ndarray:
    """The bits, so that NaN and signed zeros compare."""
    return np.array(x.view(mx.uint32 if x.itemsize == 4 else mx.uint16))


def random_array(seed: int, *shape: int, dtype: str = "float32") -> mx.array:
    values = np.random.default_rng(seed).normal(size=shape)
    return mx.array(values.astype(np.float32)).astype(DTYPES[dtype])


def random_table(
    rows: int, cols: int, bits: int = 4, group_size: int = 64, dtype: str = "float32", seed: int = 1
) -> Table:
    weight = random_array(seed, rows, cols, dtype=dtype) * 0.05
    return Table(*mx.quantize(weight, group_size=group_size, bits=bits), group_size, bits)


def assert_close(got: mx.array, truth: np.ndarray, dtype: str, allowed: float = 1e-5) -> None:
    """Within `allowed` of the largest true value, and one rounding to the dtype."""
    assert got.shape == truth.shape
    assert got.dtype == DTYPES[dtype]
    bound = ROUNDING[dtype] * np.abs(truth) + allowed * np.abs(truth).max(initial=0.0)
    if dtype == "float16":
        bound = bound + 2.0**-25
    excess = np.abs(exact(got) - truth) - bound
    assert (excess <= 0).all(), f"off by {np.abs(exact(got) - truth).max()}, {excess.max()} too much"


@contextmanager
def cpu_options(isa: str = "", threads: int = 0) -> Iterator[None]:
    """All ops on one instruction set and number of threads."""
    ext._set_cpu_options(isa, threads)
    try:
        yield
    finally:
        ext._set_cpu_options("", 0)
