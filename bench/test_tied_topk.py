"""The 64 largest logits of the tied head with their original ids, as sampling needs them."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, full, ours_and_stock, stock_product
from shapes import HEAD_ROWS, HIDDEN, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

K = 64


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("head", ["mobile", full("original")])
def test_tied_topk(measure, pool, who, dtype, head):
    rows = HEAD_ROWS[head]
    heads = pool.endless(rows, HIDDEN, factors_dtype(who, dtype))
    h = activations(1, 1, HIDDEN, dtype=DTYPES[dtype])
    original_ids = mx.sort(mx.random.permutation(HEAD_ROWS["original"])[:rows]).astype(mx.int32)
    mx.eval(original_ids)
    work = Work(
        "tied_topk",
        f"{head}, V={rows:,}, T=1, k={K}",
        dtype,
        size_bytes=packed_bytes(rows, HIDDEN),
        operations=2 * rows * HIDDEN,
    )

    def stock() -> list[mx.array]:
        logits = stock_product(h, next(heads))
        chosen = mx.argpartition(-logits, K - 1, axis=-1)[..., :K]
        values = mx.take_along_axis(logits, chosen, axis=-1)
        order = mx.argsort(-values, axis=-1)
        ids = original_ids[mx.take_along_axis(chosen, order, axis=-1)]
        return [mx.take_along_axis(values, order, axis=-1), ids]

    if who == OURS:
        run = evaluated(lambda: ops.tied_topk(h, *next(heads), k=K, inverse_map=original_ids, **AFFINE))
    else:
        run = evaluated(stock)
    measure(work, who, run)
