"""Embedding rows by token id: map, gather, decode and scale in one pass, against the chain of stock ops."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, ours_and_stock
from shapes import HEAD_ROWS, HIDDEN, packed_bytes
from work import OURS, Work

from gemma_surgery import ops

SCALE = HIDDEN**0.5


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("count", [1, 32, 512])
def test_gather_embed(measure, pool, who, dtype, count):
    rows = HEAD_ROWS["mobile"]
    table = pool.matrices(rows, HIDDEN, factors_dtype(who, dtype))[0]
    token_map = mx.random.randint(0, rows, (HEAD_ROWS["original"],)).astype(mx.int32)
    ids = [mx.random.randint(0, HEAD_ROWS["original"], (1, count)).astype(mx.int32) for _ in range(64)]
    mx.eval(token_map, ids)
    turn = itertools.cycle(ids)
    # Few ids take less time than waking the thread that looks them up: many lookups then wait once.
    calls = max(1, 64 // count)
    work = Work(
        "gather_embed",
        f"V={rows:,}, {count} id{'s' * (count > 1)}",
        dtype,
        size_bytes=packed_bytes(count, HIDDEN) + count * HIDDEN * DTYPES[dtype].size,
    )

    def stock() -> mx.array:
        chosen = token_map[next(turn)]
        return mx.dequantize(*(part[chosen] for part in table), **AFFINE) * SCALE

    def ours() -> mx.array:
        return ops.gather_embed(next(turn), token_map, *table, scale=SCALE, **AFFINE)

    once = ours if who == OURS else stock
    measure(work, who, evaluated(lambda: [once() for _ in range(calls)]), calls=calls)
