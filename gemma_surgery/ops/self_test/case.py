"""What a self-test is made of: a call of an op, and what it should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Reals: TypeAlias = NDArray[np.float64]
# What came out, the truth, and the dtype that it was rounded to.
Pair: TypeAlias = tuple[Reals, Reals, mx.Dtype]
Call: TypeAlias = Callable[[mx.DeviceType], Sequence[mx.array]]
Comparison: TypeAlias = Callable[[Sequence[mx.array]], list[Pair]]

# Not a multiple of a vector: blocks have ragged ends.
ROWS, COLS = 83, 256
TOKENS = (1, 37)


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        op: its name in `gemma_surgery.ops`.
        name: what is special about the call.
        dtype: of the activations.
        call: from a device to the results.
        compare: from the results to pairs of what came out and the truth.
    """

    op: str
    name: str
    dtype: mx.Dtype
    call: Call
    compare: Comparison


def dtype_name(dtype: mx.Dtype) -> str:
    """As in `float32`."""
    return str(dtype).removeprefix("mlx.core.")


def counted_rows(count: int) -> str:
    """As in `1 row`."""
    return f"{count} row{'s' * (count > 1)}"


def real(x: mx.array) -> Reals:
    """The values as float64."""
    return np.array(x.astype(mx.float32, stream=mx.cpu)).astype(np.float64)


def random_array(seed: int, *shape: int, dtype: mx.Dtype, factor: float = 1.0) -> mx.array:
    """Normally distributed values, the same on every machine."""
    values = factor * np.random.default_rng(seed).standard_normal(shape)
    return mx.array(values.astype(np.float32)).astype(dtype, stream=mx.cpu)


def against(*truths: Reals) -> Comparison:
    """Compare each result with its truth."""

    def compare(results: Sequence[mx.array]) -> list[Pair]:
        return [(real(got), truth, got.dtype) for got, truth in zip(results, truths, strict=True)]

    return compare
