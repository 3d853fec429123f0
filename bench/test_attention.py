"""Attention: SigLIP's patches, Gemma's prompts, and one token against what went before."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from cases import DTYPES, both_dtypes, evaluated, full, ours_and_stock
from shapes import HEAD_DIM, HEADS, KV_HEADS, PATCHES, VISION_HEAD_DIM, VISION_HEADS
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

LAYERS_PER_RUN = 8
# Together larger than the caches.
COPIES_BYTES = 5 << 27


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("size", [full("896 px"), "672 px"])
def test_attention_of_patches(measure, quick, who, dtype, size):
    tokens = PATCHES[size]
    # Heads do not depend on each other: one tells the time of all.
    heads = 1 if quick and who != OURS else VISION_HEADS
    q, k, v = _heads(heads, heads, tokens, tokens, VISION_HEAD_DIM, DTYPES[dtype])
    work = Work(
        "attention",
        f"SigLIP {size}, {VISION_HEADS} x {tokens} x {VISION_HEAD_DIM}",
        dtype,
        operations=4 * VISION_HEADS * tokens * tokens * VISION_HEAD_DIM,
    )
    run = _run(who, q, k, v)
    measure(work, who, run, share=heads / VISION_HEADS)


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("tokens", [512, full(2048)])
def test_attention_of_a_prompt(measure, who, dtype, tokens):
    q, k, v = _heads(HEADS, KV_HEADS, tokens, tokens, HEAD_DIM, DTYPES[dtype])
    work = Work(
        "attention",
        f"causal, {HEADS}/{KV_HEADS} x {tokens} x {HEAD_DIM}",
        dtype,
        operations=2 * HEADS * tokens * (tokens + 1) * HEAD_DIM,
    )
    measure(work, who, _run(who, q, k, v, causal=True))


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("keys", [1024, full(8192)])
def test_attention_of_one_token(measure, who, dtype, keys):
    """Each layer has keys and values of its own, which the weights have driven out of the caches."""
    q, k, v = _heads(HEADS, KV_HEADS, 1, keys, HEAD_DIM, DTYPES[dtype])
    layers = itertools.cycle(_copies(k, v))
    work = Work(
        "attention",
        f"one token, {HEADS}/{KV_HEADS} x {keys} x {HEAD_DIM}",
        dtype,
        size_bytes=k.nbytes + v.nbytes,
        operations=4 * HEADS * keys * HEAD_DIM,
    )
    attend = _attention(who)
    run = evaluated(lambda: [attend(q, *next(layers)) for _ in range(LAYERS_PER_RUN)])
    measure(work, who, run, calls=LAYERS_PER_RUN)


def _copies(k, v):
    count = COPIES_BYTES // (k.nbytes + v.nbytes)
    # As caches keep them: [B, K, S, D].
    copies = [(mx.contiguous(k), mx.contiguous(v)) for _ in range(count)]
    mx.eval(copies)
    return copies


def _heads(heads, kv_heads, tokens, keys, width, dtype):
    """Queries, keys and values as the models have them: views of `[B, T, H * D]`."""
    counts = ((heads, tokens), (kv_heads, keys), (kv_heads, keys))
    return [
        activations(1, length, count * width, dtype=dtype)
        .reshape(1, length, count, width)
        .transpose(0, 2, 1, 3)
        for count, length in counts
    ]


def _attention(who, causal=False):
    """Both take queries, keys and values."""
    if who == OURS:
        return lambda q, k, v: ops.attention(q, k, v, q.shape[-1] ** -0.5, causal=causal)
    mask = "causal" if causal else None
    stock = mx.fast.scaled_dot_product_attention
    return lambda q, k, v: stock(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def _run(who, q, k, v, causal=False):
    attend = _attention(who, causal)
    return evaluated(lambda: attend(q, k, v))
