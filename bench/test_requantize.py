"""The surgeon's knife: decode, take columns, encode again, against the chain of stock ops."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import AFFINE, evaluated, full, ours_and_stock
from shapes import LINEARS, VISION_HIDDEN, VISION_MLP, VISION_MLP_PADDED, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

TARGET = AFFINE["group_size"], AFFINE["bits"]
KEPT = LINEARS["down, mobile"][1]


@ours_and_stock
@pytest.mark.parametrize("refine", [False, full(True)])
def test_requantize_of_gathered_columns(measure, pool, who, refine):
    """Neurons pruned out of the middle of groups."""
    rows, cols = LINEARS["down"]
    matrix = pool.matrices(rows, cols, mx.bfloat16)[0]
    columns = mx.sort(mx.random.permutation(cols)[:KEPT]).astype(mx.int32)
    mx.eval(columns)
    work = Work(
        "requantize",
        f"4-bit [{rows}, {cols}] to {KEPT} columns{', refined' * refine}",
        size_bytes=packed_bytes(rows, cols) + packed_bytes(rows, KEPT),
        rate_bytes=2 * rows * KEPT,
    )

    def stock() -> object:
        values = mx.dequantize(*matrix, **AFFINE)[:, columns]
        return mx.quantize(values, **AFFINE)

    if who == OURS:
        run = evaluated(
            lambda: ops.requantize(*matrix, columns=columns, target=TARGET, refine=refine, **AFFINE)
        )
    else:
        run = evaluated(stock)
    measure(work, who, run)


@ours_and_stock
def test_requantize_of_a_padded_matrix(measure, who):
    """SigLIP's fc2, whose width no group divides, with zero columns at its end."""
    weight = activations(VISION_HIDDEN, VISION_MLP, dtype=mx.bfloat16)
    columns = mx.concatenate([mx.arange(VISION_MLP), mx.full((VISION_MLP_PADDED - VISION_MLP,), -1)])
    columns = columns.astype(mx.int32)
    mx.eval(columns)
    work = Work(
        "requantize",
        f"bf16 [{VISION_HIDDEN}, {VISION_MLP}] padded to {VISION_MLP_PADDED}, 4-bit",
        size_bytes=weight.nbytes + packed_bytes(VISION_HIDDEN, VISION_MLP_PADDED),
        rate_bytes=2 * VISION_HIDDEN * VISION_MLP_PADDED,
    )

    def stock() -> object:
        return mx.quantize(mx.pad(weight, [(0, 0), (0, VISION_MLP_PADDED - VISION_MLP)]), **AFFINE)

    if who == OURS:
        run = evaluated(lambda: ops.requantize(weight, columns=columns, target=TARGET))
    else:
        run = evaluated(stock)
    measure(work, who, run)
