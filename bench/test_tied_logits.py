"""Logits over the rows of the tied head: one token, which is bound by memory, and a few at once."""

from __future__ import annotations

import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, full, ours_and_stock, stock_product
from shapes import HEAD_ROWS, HIDDEN, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize(("head", "tokens"), [("mobile", 1), full("original", 1), full("mobile", 4)])
def test_tied_logits(measure, pool, who, dtype, head, tokens):
    rows = HEAD_ROWS[head]
    heads = pool.endless(rows, HIDDEN, factors_dtype(who, dtype))
    h = activations(1, tokens, HIDDEN, dtype=DTYPES[dtype])
    work = Work(
        "tied_logits",
        f"{head}, V={rows:,}, T={tokens}",
        dtype,
        size_bytes=packed_bytes(rows, HIDDEN),
        operations=2 * tokens * rows * HIDDEN,
    )
    if who == OURS:
        run = evaluated(lambda: ops.tied_logits(h, *next(heads), **AFFINE))
    else:
        run = evaluated(lambda: stock_product(h, next(heads)))
    measure(work, who, run)
