"""Parameters that the benches of ops share."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from shapes import BITS, GROUP_SIZE
from weights import Affine
from work import OURS

STOCK = "stock MLX"
DTYPES = {"bf16": mx.bfloat16, "f32": mx.float32}
AFFINE = {"group_size": GROUP_SIZE, "bits": BITS}

both_dtypes = pytest.mark.parametrize("dtype", DTYPES)
ours_and_stock = pytest.mark.parametrize("who", [OURS, STOCK])


def full(*values: object) -> object:
    """A parameter that `--quick` leaves out."""
    return pytest.param(*values, marks=pytest.mark.full)


def evaluated(function: Callable[..., object]) -> Callable[[], None]:
    """A function that waits for the arrays of another: MLX computes nothing before it must."""

    def run() -> None:
        mx.eval(function())

    return run


def factors_dtype(who: str, dtype: str) -> mx.Dtype:
    """Of scales and biases: bfloat16 as in the checkpoint; stock MLX wants that of the activations."""
    return mx.bfloat16 if who == OURS else DTYPES[dtype]


def stock_product(x: mx.array, matrix: Affine) -> mx.array:
    """`x @ W^T` as MLX has it."""
    return mx.quantized_matmul(x, *matrix, transpose=True, **AFFINE)
