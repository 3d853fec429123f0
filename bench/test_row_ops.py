"""Norms, activations and rotary positions, which read and write each number once."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import DTYPES, both_dtypes, evaluated, full, ours_and_stock
from mlx.nn import gelu_approx
from shapes import HEAD_DIM, HEADS, HIDDEN, LINEARS, VISION_HIDDEN, VISION_MLP
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

EPS = 1e-6
THETA = 10_000.0


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("tokens", [full(1), 512])
def test_rms_norm(measure, who, dtype, tokens):
    x = activations(1, tokens, HIDDEN, dtype=DTYPES[dtype])
    weight = activations(HIDDEN, dtype=DTYPES[dtype])
    norm = ops.rms_norm if who == OURS else mx.fast.rms_norm
    measure(_work("rms_norm", x, dtype), who, evaluated(lambda: norm(x, weight, EPS)))


@ours_and_stock
@both_dtypes
def test_layer_norm(measure, who, dtype):
    x = activations(1, 4096, VISION_HIDDEN, dtype=DTYPES[dtype])
    weight, bias = (activations(VISION_HIDDEN, dtype=DTYPES[dtype]) for _ in range(2))
    norm = ops.layer_norm if who == OURS else mx.fast.layer_norm
    measure(_work("layer_norm", x, dtype), who, evaluated(lambda: norm(x, weight, bias, EPS)))


@ours_and_stock
@both_dtypes
def test_gelu_tanh(measure, who, dtype):
    x = activations(1, 4096, VISION_MLP, dtype=DTYPES[dtype])
    gelu = ops.gelu_tanh if who == OURS else gelu_approx
    measure(_work("gelu_tanh", x, dtype), who, evaluated(lambda: gelu(x)))


@ours_and_stock
@both_dtypes
def test_gated_gelu(measure, who, dtype):
    gate, up = (activations(1, 512, LINEARS["gate"][0], dtype=DTYPES[dtype]) for _ in range(2))
    run = (lambda: ops.gated_gelu(gate, up)) if who == OURS else (lambda: gelu_approx(gate) * up)
    measure(_work("gated_gelu", gate, dtype, arrays=3), who, evaluated(run))


@ours_and_stock
@both_dtypes
def test_rope(measure, who, dtype):
    x = activations(1, 512, HEADS, HEAD_DIM, dtype=DTYPES[dtype]).transpose(0, 2, 1, 3)
    periods = THETA ** (mx.arange(0, HEAD_DIM, 2, mx.float32) / HEAD_DIM)
    mx.eval(periods)

    def stock() -> mx.array:
        return mx.fast.rope(x, HEAD_DIM, traditional=False, base=None, scale=1.0, offset=100, freqs=periods)

    run = (lambda: ops.rope(x, periods, offset=100)) if who == OURS else stock
    measure(_work("rope", x, dtype), who, evaluated(run))


def _work(op: str, x: mx.array, dtype: str, arrays: int = 2) -> Work:
    return Work(op, str(list(x.shape)), dtype, size_bytes=arrays * x.nbytes)
