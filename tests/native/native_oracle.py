"""Plain NumPy and MLX references for the native kernels, and small conveniences."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from gemma_surgery._native import ext

mx.set_default_device(mx.cpu)

Encoding = ext.Encoding
MLX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
ISAS = ext.available_isas()
Parts = tuple[np.ndarray, "np.ndarray | None", "np.ndarray | None"]


def raw(array: mx.array) -> np.ndarray:
    """The bytes of an mlx array as NumPy; bfloat16 as uint16."""
    return np.array(array.view(mx.uint16)) if array.dtype == mx.bfloat16 else np.array(array)


def as_float32(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def random_matrix(rng: np.random.Generator, dtype: str, rows: int, cols: int) -> mx.array:
    """Weights with a few outliers and an all-zero stretch, in the given dtype."""
    values = rng.normal(0.0, 0.02, (rows, cols)).astype(np.float32)
    values[rng.random((rows, cols)) < 0.002] *= 8
    values[0, : cols // 4] = 0.0
    return mx.array(values).astype(MLX_DTYPES[dtype])


def empty(encoding: ext.Encoding, rows: int, cols: int) -> Parts:
    weight, scales, biases = (
        np.full(rows * size, 0xA5, np.uint8) if size else None for size in encoding.row_bytes(cols)
    )
    assert weight is not None or cols == 0
    return (weight if weight is not None else np.zeros(0, np.uint8)), scales, biases


def requantize(
    parts: Parts,
    source: ext.Encoding,
    rows: int,
    cols: int,
    target: ext.Encoding,
    columns: np.ndarray | None = None,
    **options: object,
) -> Parts:
    out = empty(target, rows, cols if columns is None else len(columns))
    ext.requantize(*parts, source, rows, cols, columns, target, *out, **options)
    return out


def decode(parts: Parts, source: ext.Encoding, rows: int, cols: int) -> np.ndarray:
    """Through the kernels, to float32 [rows, cols]."""
    return requantize(parts, source, rows, cols, Encoding("F32"))[0].view(np.float32).reshape(rows, cols)


def stored_to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return stored.view(np.float32)
    if dtype == "F16":
        return stored.view(np.float16).astype(np.float32)
    return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def plain_codes(weight: np.ndarray, bits: int, rows: int, cols: int) -> np.ndarray:
    """Codes from the packed bytes, straight from the definition: bit k * bits + j of the row."""
    stream = np.unpackbits(weight.view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")
    return (stream.reshape(rows, cols, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def plain_affine_decode(parts: Parts, encoding: ext.Encoding, rows: int, cols: int) -> np.ndarray:
    """float32 [rows, cols]: one rounding of the product, one of the sum."""
    weight, scales, biases = parts
    codes = plain_codes(weight, encoding.bits, rows, cols).astype(np.float32)
    scale, bias = (
        np.repeat(stored_to_float32(part, encoding.dtype).reshape(rows, -1), encoding.group_size, axis=1)
        for part in (scales, biases)
    )
    return codes * scale + bias


def take_columns(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Columns by index, -1 as zeros."""
    return np.where(columns < 0, np.float32(0), values[:, np.maximum(columns, 0)])


def rms(got: np.ndarray, wanted: np.ndarray) -> float:
    difference = got.astype(np.float64) - wanted.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2)))


def same_bytes(a: Parts, b: Parts) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and ext.equal_bytes(x, y))
        for x, y in zip(a, b, strict=True)
    )
