"""Log-probabilities of given tokens, as evaluation needs them; stock MLX gets fewer rows."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, full, ours_and_stock, stock_product
from shapes import HEAD_ROWS, HIDDEN, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

# MLX takes the rows of a quantized product one by one, so two tell the time of all.
STOCK_TOKENS = 2


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize(("head", "tokens"), [("mobile", 64), full("original", 512)])
def test_tied_logprob(measure, pool, who, dtype, head, tokens):
    rows = HEAD_ROWS[head]
    heads = pool.endless(rows, HIDDEN, factors_dtype(who, dtype))
    done = tokens if who == OURS else STOCK_TOKENS
    h = activations(1, done, HIDDEN, dtype=DTYPES[dtype])
    targets = mx.random.randint(0, rows, (1, done))
    mx.eval(targets)
    work = Work(
        "tied_logprob",
        f"{head}, V={rows:,}, T={tokens}",
        dtype,
        size_bytes=packed_bytes(rows, HIDDEN),
        operations=2 * tokens * rows * HIDDEN,
    )

    def stock() -> list[mx.array]:
        logits = stock_product(h, next(heads)).astype(mx.float32)
        sums = mx.logsumexp(logits, axis=-1)
        return [mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - sums, sums]

    if who == OURS:
        run = evaluated(lambda: ops.tied_logprob(h, targets, *next(heads), **AFFINE))
    else:
        run = evaluated(stock)
    measure(work, who, run, share=done / tokens)
