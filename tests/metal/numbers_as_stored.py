"""Random tables and vectors in the stored types, with their float64 values; bfloat16 as its 16 bits."""

from __future__ import annotations

import numpy as np
from kernels import Table

DTYPES = {"float": np.float32, "half": np.float16, "bfloat": np.uint16}
# Relative rounding of one value, half a unit in the last place.
ROUNDING = {"float": 2.0**-24, "half": 2.0**-11, "bfloat": 2.0**-8}


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to the nearest stored value, ties to even."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype != "bfloat":
        return single.astype(DTYPES[dtype])
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16)


def real(array: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers as float64."""
    if dtype != "bfloat":
        return array.astype(np.float64)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, cols] as MLX packs them: one little-endian stream per row, in 32-bit words."""
    stream = ((codes[..., None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(len(codes), -1)
    return np.packbits(stream, axis=1, bitorder="little").view(np.uint32)


def unpacked(words: np.ndarray, bits: int, cols: int) -> np.ndarray:
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return (stream.reshape(len(words), cols, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def make_table(
    generator: np.random.Generator, rows: int, cols: int, bits: int, group: int, dtype: str
) -> Table:
    """Random codes; scales of both signs."""
    codes = generator.integers(0, 1 << bits, (rows, cols))
    signs = generator.choice([-1.0, 1.0], (rows, cols // group))
    scales = stored(signs * generator.uniform(0.5, 1.5, signs.shape) / (1 << bits), dtype)
    biases = stored(generator.normal(0, 0.5, signs.shape), dtype)
    wide = codes.reshape(rows, -1, group) * real(scales, dtype)[..., None] + real(biases, dtype)[..., None]
    return Table(packed(codes, bits), scales, biases, bits, group, dtype, wide.reshape(rows, cols))
