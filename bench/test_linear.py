"""Products with dense matrices: SigLIP's fc2, which no group divides, and those of one token."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from cases import DTYPES, both_dtypes, evaluated, full, ours_and_stock
from shapes import LINEARS, PATCHES, VISION_HIDDEN, VISION_MLP
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

# Rows of a dense product take the same time each: a part of them tells the time of all.
STOCK_SHARE = 16
# Together larger than the caches.
COPIES = 12


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("size", [full("896 px"), "672 px"])
def test_linear_of_patches(measure, who, dtype, size):
    tokens = PATCHES[size]
    done = tokens if who == OURS else tokens // STOCK_SHARE
    x = activations(1, done, VISION_MLP, dtype=DTYPES[dtype])
    weight = activations(VISION_HIDDEN, VISION_MLP, dtype=DTYPES[dtype])
    work = Work(
        "linear",
        f"SigLIP fc2 [{VISION_HIDDEN}, {VISION_MLP}], T={tokens}",
        dtype,
        VISION_HIDDEN * VISION_MLP * DTYPES[dtype].size,
        2 * tokens * VISION_HIDDEN * VISION_MLP,
    )
    measure(work, who, _run(who, x, itertools.repeat(weight)), share=done / tokens)


@pytest.mark.full
@ours_and_stock
@both_dtypes
def test_linear_of_one_token(measure, who, dtype):
    rows, cols = LINEARS["gate"]
    x = activations(1, 1, cols, dtype=DTYPES[dtype])
    weights = itertools.cycle([activations(rows, cols, dtype=DTYPES[dtype]) for _ in range(COPIES)])
    work = Work(
        "linear",
        f"gate [{rows}, {cols}], T=1",
        dtype,
        rows * cols * DTYPES[dtype].size,
        2 * rows * cols,
    )
    measure(work, who, _run(who, x, weights))


def _run(who, x, weights):
    if who == OURS:
        return evaluated(lambda: ops.linear(x, next(weights)))
    return evaluated(lambda: mx.matmul(x, next(weights).T))
