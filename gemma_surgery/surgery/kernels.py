"""The native kernels as the surgery calls them: on the stored parts of a logical matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_surgery._native import ext
from gemma_surgery.surgery.encoding import Dense, Encoding
from gemma_surgery.surgery.selection import Indices, Scores

Bytes: TypeAlias = "npt.NDArray[np.uint8]"
Values: TypeAlias = "npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | npt.NDArray[np.float32]"


def as_bytes(buffer: memoryview | Values) -> Bytes:
    """A flat view of memory as bytes."""
    if isinstance(buffer, memoryview):
        return np.frombuffer(buffer, np.uint8)
    return buffer.reshape(-1).view(np.uint8)


def convert(
    parts: Sequence[Bytes],
    source: Encoding,
    shape: tuple[int, int],
    columns: Indices | None,
    target: Encoding,
    outs: Sequence[Bytes],
) -> None:
    """Decode `shape` = (rows, columns) values, gather `columns` (-1 adds zeros) and encode them.

    Scales and biases are refitted to their codes by least squares where that lowers the error.

    Raises:
        ValueError: a value is not finite, where `target` cannot say so.
    """
    weight, scales, biases = _three(parts)
    out_weight, out_scales, out_biases = _three(outs)
    assert weight is not None and out_weight is not None
    ext.requantize(
        weight,
        scales,
        biases,
        _native(source),
        *shape,
        columns,
        _native(target),
        out_weight,
        out_scales,
        out_biases,
        refine=True,
    )


def add_square_sums(
    parts: Sequence[Bytes], encoding: Encoding, shape: tuple[int, int], axis: str, out: Scores
) -> None:
    """Sums of squares of decoded values: set per row, or added per column to what `out` holds."""
    weight, scales, biases = _three(parts)
    assert weight is not None
    kernel = ext.row_square_sums if axis == "rows" else ext.column_square_sums
    kernel(weight, scales, biases, _native(encoding), *shape, out)


def gather_rows(source: memoryview, row_bytes: int, indices: Indices, out: memoryview) -> None:
    """Copy rows of `row_bytes` bytes; -1 gives zeros."""
    ext.gather_rows(as_bytes(source), row_bytes, indices, as_bytes(out))


def gather_units(
    source: memoryview, rows: int, row_bytes: int, unit_bytes: int, indices: Indices, out: memoryview
) -> None:
    """In every row copy units of `unit_bytes` bytes; -1 gives zeros."""
    ext.gather_units(as_bytes(source), rows, row_bytes, unit_bytes, indices, as_bytes(out))


def equal(first: memoryview, second: memoryview) -> bool:
    """Whether two buffers hold the same bytes."""
    return ext.equal_bytes(as_bytes(first), as_bytes(second))


def _native(encoding: Encoding) -> ext.Encoding:
    if isinstance(encoding, Dense):
        return ext.Encoding(encoding.dtype)
    return ext.Encoding(encoding.scale_dtype, encoding.bits, encoding.group_size, encoding.mode)


def _three(parts: Sequence[Bytes]) -> tuple[Bytes | None, Bytes | None, Bytes | None]:
    """Weight, scales and biases, None for those that the encoding does not store."""
    weight, scales, biases = (*parts, None, None, None)[:3]
    return weight, scales, biases
