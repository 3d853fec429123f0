"""Ops on packed matrices, against their formulas over values decoded from the definition of the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from gemma_surgery import ops
from gemma_surgery.ops.common import Quantized
from gemma_surgery.ops.self_test.case import (
    COLS,
    ROWS,
    TOKENS,
    Call,
    Case,
    Comparison,
    Pair,
    Reals,
    against,
    counted_rows,
    dtype_name,
    random_array,
    real,
)

SOFTCAP = 30.0


@dataclass(frozen=True)
class Format:
    """How a matrix is packed, and the dtype of activations, scales and biases."""

    bits: int
    group_size: int
    dtype: mx.Dtype

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}, {dtype_name(self.dtype)}"

    @property
    def packing(self) -> dict[str, Any]:
        """As arguments of an op."""
        return {"group_size": self.group_size, "bits": self.bits}


def _arrays(result: mx.array | Quantized) -> Sequence[mx.array]:
    return result if isinstance(result, tuple) else (result,)


def _decoded(weight: mx.array, scales: mx.array, biases: mx.array, form: Format) -> tuple[Reals, Reals]:
    """Values from the definition of the format, and the spacing of the grid that each lies on."""
    packed = np.array(weight)
    stream = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
    digits = stream.reshape(len(packed), -1, form.bits).astype(np.int64)
    codes = (digits << np.arange(form.bits)).sum(axis=-1)
    scale, bias = (np.repeat(real(part), form.group_size, axis=1) for part in (scales, biases))
    return codes * scale + bias, scale


def quantized_cases(form: Format) -> Iterator[Case]:
    """Every op on a matrix of this format."""
    random = np.random.default_rng(form.bits)
    # All patterns of bits are codes, so the matrix needs no quantizer.
    groups = ROWS, COLS // form.group_size
    words = random.integers(0, 2**32, (ROWS, COLS * form.bits // 32), np.uint32)
    scales = random_array(1, *groups, dtype=form.dtype, factor=2.0**-form.bits)
    parts = mx.array(words), scales, random_array(2, *groups, dtype=form.dtype, factor=0.5)
    table, _ = _decoded(*parts, form)

    ids, token_map = np.array([[5, 0], [7, 11]]), random.permutation(ROWS)
    yield Case(
        "gather_embed",
        str(form),
        form.dtype,
        lambda on: [
            ops.gather_embed(
                mx.array(ids), mx.array(token_map, mx.int32), *parts, 3.0, **form.packing, stream=on
            )
        ],
        against(3.0 * table[token_map[ids]]),
    )
    for tokens in TOKENS:
        yield from _head_cases(form, tokens, parts, table)
    yield from _requantize_cases(form, parts, table)


def _head_cases(form: Format, tokens: int, parts: Quantized, table: Reals) -> Iterator[Case]:
    name = f"{form}, {counted_rows(tokens)}"
    h = random_array(3, tokens, COLS, dtype=form.dtype)
    product = real(h) @ table.T
    logits = SOFTCAP * np.tanh(product / SOFTCAP)
    order = np.argsort(-product, axis=-1)
    sums = np.log(np.exp(logits).sum(axis=-1))
    original = mx.array(np.arange(ROWS)[::-1] * 3, mx.int32)
    targets = np.arange(tokens) * 7 % ROWS - 1
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=-1)[:, 0] - sums
    # Every other row is never chosen.
    row_ids = np.where(np.arange(ROWS) % 2 == 1, np.arange(ROWS) * 3, -1).astype(np.int32)
    kept = np.where(row_ids >= 0, logits, -np.inf)
    log_sums = np.log(np.exp(kept).sum(axis=-1))

    def selected(results: Sequence[mx.array]) -> list[Pair]:
        values, ids = real(results[0]), np.array(results[1])
        rows = ROWS - 1 - ids // 3
        k = 1 if ids.ndim == 1 else ids.shape[-1]
        best = np.take_along_axis(product, order[:, :k], axis=-1).reshape(values.shape)
        if (ids % 3).any() or rows.min() < 0 or rows.max() >= ROWS:
            return [(np.full_like(values, np.nan), best, mx.float32)]
        # Of nearly equal logits either may come first: the value counts, not the row.
        named = np.take_along_axis(product, rows.reshape(tokens, -1), axis=-1).reshape(values.shape)
        return [(values, best, mx.float32), (named, best, mx.float32)]

    def decided(results: Sequence[mx.array]) -> list[Pair]:
        # As logits: log-probabilities near zero would make every error look large.
        ids, values = np.array(results[0]), real(results[1]) + log_sums
        best = kept.max(axis=-1)
        if not np.isin(ids, row_ids[1::2]).all():
            return [(np.full_like(values, np.nan), best, mx.float32)]
        named = np.take_along_axis(logits, ids[:, None] // 3, axis=-1)[:, 0]
        return [(values, best, mx.float32), (named, best, mx.float32)]

    def case(op: str, call: Call, compare: Comparison) -> Case:
        return Case(op, name, form.dtype, call, compare)

    yield case(
        "quantized_linear",
        lambda on: [ops.quantized_linear(h, *parts, **form.packing, stream=on)],
        against(product),
    )
    yield case(
        "tied_logits",
        lambda on: [ops.tied_logits(h, *parts, SOFTCAP, **form.packing, stream=on)],
        against(logits),
    )
    yield case(
        "tied_argmax",
        lambda on: ops.tied_argmax(h, *parts, original, **form.packing, stream=on),
        selected,
    )
    yield case(
        "tied_choice",
        lambda on: ops.tied_choice(h, *parts, mx.array(row_ids), SOFTCAP, **form.packing, stream=on),
        decided,
    )
    yield case(
        "tied_topk",
        lambda on: ops.tied_topk(h, *parts, 9, original, **form.packing, stream=on),
        selected,
    )
    yield case(
        "tied_logprob",
        lambda on: ops.tied_logprob(h, mx.array(targets), *parts, SOFTCAP, **form.packing, stream=on),
        against(np.where(targets < 0, -np.inf, chosen), sums),
    )


def _requantize_cases(form: Format, parts: Quantized, table: Reals) -> Iterator[Case]:
    yield Case(
        "requantize",
        f"{form}, to float32",
        form.dtype,
        lambda on: _arrays(ops.requantize(*parts, **form.packing, target=mx.float32, stream=on)),
        against(table),
    )
    half = np.arange(COLS // 2)
    columns = np.where(half % 5 == 4, -1, 2 * half)
    dense = random_array(5, ROWS, COLS, dtype=form.dtype)
    taken = np.where(columns >= 0, real(dense)[:, columns], 0.0)
    groups = taken.reshape(ROWS, -1, form.group_size)
    spans = np.maximum(groups.max(axis=-1), 0) - np.minimum(groups.min(axis=-1), 0)
    step = np.repeat(spans, form.group_size, axis=1) / (2**form.bits - 1)

    def nearest(results: Sequence[mx.array]) -> list[Pair]:
        """Codes are the nearest on the grid as stored, which is about as fine as its bits allow."""
        weight, scales, stored_biases = results
        decoded, grid = _decoded(weight, scales, stored_biases, form)
        biases = np.repeat(real(stored_biases), form.group_size, axis=1)
        safe = np.where(grid == 0, 1.0, grid)
        code = np.clip(np.rint((taken - biases) / safe), 0, 2**form.bits - 1)
        best = np.where(grid == 0, biases, code * grid + biases)
        # A tie may go either way.
        tied = np.abs(np.abs(decoded - taken) - np.abs(best - taken)) <= 1e-6 * np.abs(grid)
        too_far = np.maximum(np.abs(decoded - taken) - 1.01 * step, 0.0)
        zeros = decoded[:, columns < 0]
        return [
            (np.where(tied, best, decoded), best, mx.float32),
            (too_far, np.zeros_like(too_far), mx.float32),
            (zeros, np.zeros_like(zeros), mx.float32),
        ]

    yield Case(
        "requantize",
        f"{form}, from dense columns",
        form.dtype,
        lambda on: _arrays(
            ops.requantize(
                dense,
                columns=mx.array(columns, mx.int32),
                target=(form.group_size, form.bits),
                stream=on,
            )
        ),
        nearest,
    )
