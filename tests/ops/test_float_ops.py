"""Ops on floating point arrays against float64 truth, and the plain ones against both."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import DTYPES, assert_close, cpu_options, exact, random_array, raw

from gemma_surgery import ops

EPS = 1e-6
BOTH = pytest.mark.parametrize("where", [ops, ops.plain], ids=["ours", "plain"])
DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


@BOTH
@DTYPE
@pytest.mark.parametrize("cols", [1, 7, 64, 200])
def test_norms_and_gelu_are_the_true_ones_rounded(cols: int, dtype: str, where: Any) -> None:
    x, y = (random_array(seed, 3, 5, cols, dtype=dtype) for seed in (1, 2))
    weight, bias = (random_array(seed, cols, dtype=dtype) for seed in (3, 4))
    tx, ty, tw, tb = (exact(part) for part in (x, y, weight, bias))
    assert_close(where.rms_norm(x, weight, EPS), normed(tx) * tw, dtype)
    assert_close(where.rms_norm(x, None, EPS), normed(tx), dtype)
    assert_close(where.add_rms_norm(x, y, weight, EPS), tx + normed(ty) * tw, dtype)
    centred = tx - tx.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    assert_close(where.layer_norm(x, weight, bias, EPS), layer * tw + tb, dtype)
    assert_close(where.layer_norm(x, None, None, EPS), layer, dtype)
    assert_close(where.gelu_tanh(x), gelu(tx), dtype)
    assert_close(where.gated_gelu(x, y), gelu(tx) * ty, dtype)


@DTYPE
@pytest.mark.parametrize("tokens", [1, 4, 33])
def test_linear_is_the_true_product_rounded(tokens: int, dtype: str) -> None:
    x, weight = random_array(1, 2, tokens, 96, dtype=dtype), random_array(2, 70, 96, dtype=dtype)
    bias = random_array(3, 70, dtype=dtype)
    truth = exact(x) @ exact(weight).T
    assert_close(ops.linear(x, weight), truth, dtype)
    assert_close(ops.linear(x, weight, bias), truth + exact(bias), dtype)
    mixed = ops.linear(x, weight.astype(mx.float32), bias.astype(mx.float16))
    assert_close(mixed, truth + exact(bias.astype(mx.float16)), dtype)


def test_linear_takes_rows_of_a_wider_weight_in_place() -> None:
    x, wide = random_array(1, 3, 64), random_array(2, 10, 128)
    np.testing.assert_array_equal(
        raw(ops.linear(x, wide[:, 64:])), raw(ops.linear(x, mx.contiguous(wide[:, 64:])))
    )
    columns = random_array(3, 64, 10)
    np.testing.assert_array_equal(raw(ops.linear(x, columns.T)), raw(ops.linear(x, mx.contiguous(columns.T))))


def seen(queries: int, keys: int, options: dict[str, Any]) -> np.ndarray:
    if "mask" in options:
        return np.array(options["mask"])
    if not options.get("causal"):
        return np.ones((queries, keys), bool)
    position, key = np.arange(keys - queries, keys)[:, None], np.arange(keys)[None]
    allowed = key <= position
    if "image_blocks" in options:
        blocks = np.concatenate([np.zeros(keys - queries, int), np.array(options["image_blocks"])])
        mine = blocks[keys - queries :, None]
        allowed |= (mine == blocks) & (mine > 0)
    return allowed & (key > position - options.get("window", keys))


def true_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, options: dict[str, Any]
) -> np.ndarray:
    share = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(exact(part), share, axis=1) for part in (k, v))
    scores = scale * exact(q) @ keys.swapaxes(-1, -2)
    allowed = np.broadcast_to(seen(q.shape[2], k.shape[2], options), scores.shape)
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return weights @ values / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


MASKS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window": 5},
    {"causal": True, "image_blocks": True},
    {"causal": True, "window": 7, "image_blocks": True},
    {"mask": True},
]


@DTYPE
@pytest.mark.parametrize("options", MASKS, ids=lambda o: "+".join(o) or "full")
@pytest.mark.parametrize(("queries", "past", "dim"), [(1, 20, 64), (6, 3, 72), (40, 0, 64), (33, 30, 256)])
def test_attention_is_the_true_one(
    queries: int, past: int, dim: int, options: dict[str, Any], dtype: str
) -> None:
    keys = queries + past
    options = dict(options)
    if "image_blocks" in options:
        options["image_blocks"] = mx.array(np.arange(queries) // 4 % 3, mx.int32)
    if "mask" in options:
        options["mask"] = random_array(9, queries, keys) > 0.3
    q = random_array(1, 2, 4, queries, dim, dtype=dtype)
    k, v = (random_array(seed, 2, 2, keys, dim, dtype=dtype) for seed in (2, 3))
    scale = dim**-0.5
    truth = true_attention(q, k, v, scale, options)
    assert_close(ops.attention(q, k, v, scale, **options), truth, dtype)
    if dtype == "float32":
        assert_close(ops.plain.attention(q, k, v, scale, **options), truth, dtype)


def test_attention_reads_transposed_heads_in_place_and_writes_tokens_first() -> None:
    q, k, v = (random_array(seed, 1, 9, 4, 64) for seed in (1, 2, 3))
    turned = [part.transpose(0, 2, 1, 3) for part in (q, k, v)]
    got = ops.attention(*turned, 0.1, causal=True)
    wanted = ops.attention(*(mx.contiguous(part) for part in turned), 0.1, causal=True)
    np.testing.assert_array_equal(raw(got), raw(wanted))
    np.testing.assert_array_equal(
        raw(got.transpose(0, 2, 1, 3).flatten(2)), raw(mx.contiguous(wanted).transpose(0, 2, 1, 3).flatten(2))
    )
    np.testing.assert_array_equal(raw(got + 1), raw(mx.contiguous(wanted) + 1))
    cut = [mx.concatenate([part, part], axis=2)[:, :, :9] for part in turned]
    np.testing.assert_array_equal(raw(ops.attention(*cut, 0.1, causal=True)), raw(wanted))


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 1, 5), (2, 4, 3, 5), (3, 1), (5,)])
def test_a_mask_broadcasts(shape: tuple[int, ...]) -> None:
    q, k = random_array(1, 2, 4, 3, 64), random_array(2, 2, 4, 5, 64)
    mask = random_array(5, *shape) > -1.0
    whole = mx.contiguous(mx.broadcast_to(mask, (2, 4, 3, 5)))
    np.testing.assert_array_equal(
        raw(ops.attention(q, k, k, 0.1, mask=mask)), raw(ops.attention(q, k, k, 0.1, mask=whole))
    )


@BOTH
def test_a_query_that_sees_nothing_gives_zeros(where: Any) -> None:
    q, k = random_array(1, 1, 1, 10, 64), random_array(2, 1, 1, 12, 64)
    mask = mx.arange(10)[:, None] != mx.full((1, 12), 4)
    got = exact(where.attention(q, k, k, 0.1, mask=mask))
    assert (got[0, 0, 4] == 0).all() and (np.delete(got[0, 0], 4, axis=0) != 0).any(-1).all()


@BOTH
@pytest.mark.parametrize("dims", [64, 48])
def test_rope_turns_pairs_by_position(dims: int, where: Any) -> None:
    x = random_array(1, 2, 3, 5, 64)
    periods = (10000.0 ** (np.arange(0, dims, 2) / dims)).astype(np.float32)
    angles = (7 + np.arange(5))[:, None] / periods.astype(np.float64)
    first, second = np.split(exact(x)[..., :dims], 2, axis=-1)
    truth = np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
            exact(x)[..., dims:],
        ],
        axis=-1,
    )
    assert_close(where.rope(x, mx.array(periods), 7), truth, "float32")


def test_rope_is_exact_at_far_positions() -> None:
    x = random_array(1, 1, 1, 2, 64)
    periods = (1e6 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    angles = (131000 + np.arange(2))[:, None] / periods.astype(np.float64)
    first, second = np.split(exact(x), 2, axis=-1)
    truth = first * np.cos(angles) - second * np.sin(angles)
    assert_close(ops.rope(x, mx.array(periods), 131000)[..., :32], truth, "float32", 1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_float_ops_do_not_depend_on_threads(threads: int) -> None:
    x, weight = random_array(1, 64, 128), random_array(2, 50, 128)
    q = random_array(3, 1, 4, 40, 64)

    def results() -> list[np.ndarray]:
        parts = (ops.linear(x, weight), ops.rms_norm(x, None, EPS), ops.attention(q, q, q, 0.1, causal=True))
        return [raw(part) for part in parts]

    wanted = results()
    with cpu_options(threads=threads):
        for got, part in zip(results(), wanted, strict=True):
            np.testing.assert_array_equal(got, part)
