"""Ops on floating point arrays, against their formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from gemma_surgery import ops
from gemma_surgery.ops.self_test.case import (
    COLS,
    ROWS,
    TOKENS,
    Case,
    Reals,
    against,
    counted_rows,
    dtype_name,
    random_array,
    real,
)

EPS = 1e-6
KEYS, HEAD_DIM = 41, 64
# Queries and window: a decode step, and part of a prompt.
ATTENTION = ((1, None), (33, 7))


def float_cases(dtype: mx.Dtype) -> Iterator[Case]:
    """Every op on arrays of this dtype."""
    yield from _row_cases(dtype)
    for tokens in TOKENS:
        yield _linear_case(dtype, tokens)
    keys, values = (random_array(seed, 1, 2, KEYS, HEAD_DIM, dtype=dtype) for seed in (12, 13))
    yield _rope_case(keys)
    for num_queries, window in ATTENTION:
        yield _attention_case(keys, values, num_queries, window)


def _gelu(x: Reals) -> Reals:
    value: Reals = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return value


def _normed(x: Reals) -> Reals:
    scaled: Reals = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    return scaled


def _row_cases(dtype: mx.Dtype) -> Iterator[Case]:
    name, cols = dtype_name(dtype), COLS - 3
    x, y = (random_array(seed, 3, cols, dtype=dtype) for seed in (6, 7))
    weight, bias = (random_array(seed, cols, dtype=dtype) for seed in (8, 9))
    tx, ty, tw, tb = (real(part) for part in (x, y, weight, bias))
    centred = tx - tx.mean(axis=-1, keepdims=True)
    yield Case(
        "rms_norm",
        name,
        dtype,
        lambda on: [ops.rms_norm(x, weight, EPS, stream=on)],
        against(_normed(tx) * tw),
    )
    yield Case(
        "add_rms_norm",
        name,
        dtype,
        lambda on: [ops.add_rms_norm(x, y, weight, EPS, stream=on)],
        against(tx + _normed(ty) * tw),
    )
    yield Case(
        "layer_norm",
        name,
        dtype,
        lambda on: [ops.layer_norm(x, weight, bias, EPS, stream=on)],
        against(_normed(centred) * tw + tb),
    )
    yield Case("gelu_tanh", name, dtype, lambda on: [ops.gelu_tanh(x, stream=on)], against(_gelu(tx)))
    yield Case(
        "gated_gelu",
        name,
        dtype,
        lambda on: [ops.gated_gelu(x, y, stream=on)],
        against(_gelu(tx) * ty),
    )


def _linear_case(dtype: mx.Dtype, tokens: int) -> Case:
    x, weight = random_array(10, tokens, COLS, dtype=dtype), random_array(11, ROWS, COLS, dtype=dtype)
    return Case(
        "linear",
        f"{dtype_name(dtype)}, {counted_rows(tokens)}",
        dtype,
        lambda on: [ops.linear(x, weight, stream=on)],
        against(real(x) @ real(weight).T),
    )


def _rope_case(x: mx.array) -> Case:
    offset = 100
    periods = np.float32(10000.0) ** (np.arange(HEAD_DIM // 2, dtype=np.float32) / (HEAD_DIM // 2))
    angles = (offset + np.arange(KEYS))[:, None] / periods.astype(np.float64)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(real(x), 2, axis=-1)
    return Case(
        "rope",
        dtype_name(x.dtype),
        x.dtype,
        lambda on: [ops.rope(x, mx.array(periods), offset, stream=on)],
        against(np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)),
    )


def _attention_case(keys: mx.array, values: mx.array, num_queries: int, window: int | None) -> Case:
    """Two query heads per key head; the queries are the last tokens."""
    q = random_array(14, 1, 4, num_queries, HEAD_DIM, dtype=keys.dtype)
    scale = HEAD_DIM**-0.5
    shared_keys, shared_values = (np.repeat(real(part), 2, axis=1) for part in (keys, values))
    position, key = np.arange(KEYS - num_queries, KEYS)[:, None], np.arange(KEYS)
    seen = (key <= position) & (key > position - (window or KEYS))
    shares = np.where(seen, np.exp(scale * real(q) @ shared_keys.swapaxes(-1, -2)), 0.0)
    return Case(
        "attention",
        f"{dtype_name(keys.dtype)}, causal, {num_queries} of {KEYS} tokens, window {window}",
        keys.dtype,
        lambda on: [ops.attention(q, keys, values, scale, causal=True, window=window, stream=on)],
        against(shares @ shared_values / shares.sum(axis=-1, keepdims=True)),
    )
