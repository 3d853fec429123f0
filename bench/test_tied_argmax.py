"""The greedy choice over the tied head, whose logits are never written."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, full, ours_and_stock, stock_product
from shapes import HEAD_ROWS, HIDDEN, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("head", ["mobile", full("original")])
def test_tied_argmax(measure, pool, who, dtype, head):
    rows = HEAD_ROWS[head]
    heads = pool.endless(rows, HIDDEN, factors_dtype(who, dtype))
    h = activations(1, 1, HIDDEN, dtype=DTYPES[dtype])
    work = Work(
        "tied_argmax",
        f"{head}, V={rows:,}, T=1",
        dtype,
        size_bytes=packed_bytes(rows, HIDDEN),
        operations=2 * rows * HIDDEN,
    )
    if who == OURS:
        run = evaluated(lambda: ops.tied_argmax(h, *next(heads), **AFFINE))
    else:
        run = evaluated(lambda: mx.argmax(stock_product(h, next(heads)), axis=-1))
    measure(work, who, run)
