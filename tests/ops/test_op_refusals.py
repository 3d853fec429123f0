"""What the ops refuse when they are built, with the sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlx.core as mx
import pytest
from ops_oracle import random_table

from gemma_surgery import ops

TABLE = random_table(10, 128)
W, S, B = TABLE.parts
H = mx.zeros((2, 128))
IDS = mx.zeros((2,), mx.int32)
Q = mx.zeros((1, 4, 3, 64))
K = mx.zeros((1, 2, 5, 64))

TABLE_FAULTS: list[tuple[dict[str, object], str]] = [
    ({"bits": 7}, "need 2, 3, 4, 5, 6 or 8 bits, got 7"),
    ({"bits": 1}, "got 1"),
    ({"group_size": 16}, "need group size 32, 64 or 128, got 16"),
    ({"bits": 8}, "need 32 words per row for 2 groups of 64 codes of 8 bits, got `weight` [10, 16]"),
    ({"group_size": 128}, "need 32 words per row for 2 groups of 128 codes of 4 bits"),
    (
        {"weight": W.astype(mx.int32)},
        "need packed codes uint32 [rows, words] for `weight`, got int32 [10, 16]",
    ),
    ({"weight": W[None]}, "got uint32 [1, 10, 16]"),
    ({"scales": S[:9]}, "need scales [10, groups], one row for each of `weight`, got [9, 2]"),
    ({"scales": S.astype(mx.int32)}, "need float32, float16 or bfloat16 for `scales`, got int32"),
    ({"biases": B[:, :1]}, "need biases like the scales, float32 [10, 2], got float32 [10, 1]"),
    ({"biases": B.astype(mx.float16)}, "got float16 [10, 2]"),
    ({"weight": W[:, :0], "scales": S[:, :0], "biases": B[:, :0]}, "0 groups"),
]

TABLE_OPS: dict[str, Callable[..., object]] = {
    "gather_embed": lambda **k: ops.gather_embed(IDS, None, **k),
    "quantized_linear": lambda **k: ops.quantized_linear(H, **k),
    "tied_logits": lambda **k: ops.tied_logits(H, **k),
    "tied_argmax": lambda **k: ops.tied_argmax(H, **k),
    "tied_topk": lambda **k: ops.tied_topk(H, k=1, **k),
    "tied_logprob": lambda **k: ops.tied_logprob(H, IDS, **k),
    "requantize": lambda **k: ops.requantize(target=mx.float32, **k),
}


@pytest.mark.parametrize("name", TABLE_OPS)
@pytest.mark.parametrize(("changes", "message"), TABLE_FAULTS)
def test_a_table_that_does_not_fit_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    if name == "requantize" and {"bits", "group_size"} & set(changes) and "words" not in message:
        tag = "[encoding]"
    else:
        tag = f"[{name}]"
    arguments = {"weight": W, "scales": S, "biases": B, "group_size": 64, "bits": 4}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        TABLE_OPS[name](**{**arguments, **changes})
    assert str(caught.value).startswith(tag)
    TABLE_OPS[name](**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.gather_embed(IDS.astype(mx.float32), None, W, S, B),
            "need integers for `ids`, got float32",
        ),
        (
            lambda: ops.gather_embed(IDS, mx.zeros((3,)), W, S, B),
            "int32 [ids] for `token_map`, got float32 [3]",
        ),
        (lambda: ops.gather_embed(IDS, None, W, S, B, dtype=mx.int8), "for `dtype`, got int8"),
        (
            lambda: ops.quantized_linear(H[:, :64], W, S, B),
            "need a last dimension of 128 for `x`, got [2, 64]",
        ),
        (
            lambda: ops.quantized_linear(mx.array(1.0), W, S, B),
            "need a last dimension of 128 for `x`, got []",
        ),
        (lambda: ops.quantized_linear(H.astype(mx.int32), W, S, B), "bfloat16 for `x`, got int32"),
        (lambda: ops.quantized_linear(H, W, S, B, mx.zeros(9)), "need a bias [10], one for each row"),
        (
            lambda: ops.quantized_linear(H, W, S, B, activations="int4"),
            "`full`, `int16` or `int8`, got `int4`",
        ),
        (lambda: ops.tied_logits(H, W, S, B, -1.0), "need a positive softcap or none, got -1"),
        (lambda: ops.tied_logits(H, W, S, B, float("nan")), "need a positive softcap or none, got nan"),
        (lambda: ops.tied_topk(H, W, S, B, 0), "need k between 1 and the 10 rows of `weight`, got 0"),
        (lambda: ops.tied_topk(H, W, S, B, 11), "got 11"),
        (lambda: ops.tied_argmax(H, W[:0], S[:0], B[:0]), "need k between 1 and the 0 rows"),
        (lambda: ops.tied_topk(H, W, S, B, 1, IDS), "need int32 [10] for `inverse_map`, got int32 [2]"),
        (lambda: ops.tied_logprob(H, IDS[:1], W, S, B), "need a target for each row of `h`, [2], got [1]"),
        (lambda: ops.tied_logprob(H, IDS, W[:0], S[:0], B[:0]), "need at least one row"),
        (lambda: ops.requantize(W, S, target=mx.float32), "need scales and biases together"),
        (lambda: ops.requantize(mx.zeros((2, 2, 64)), target=(64, 4)), "need a matrix [rows, cols]"),
        (lambda: ops.requantize(mx.zeros((2, 100)), target=(64, 4)), "divisible by group size 64, got 100"),
        (lambda: ops.requantize(mx.zeros((2, 64)), target=(48, 4)), "group size 32, 64 or 128, got 48"),
        (
            lambda: ops.requantize(mx.zeros((2, 64)), columns=IDS[None], target=(64, 4)),
            "one-dimensional `columns`",
        ),
        (lambda: ops.requantize(mx.zeros((2, 64)), target=mx.int32), "bfloat16 for `dtype`, got int32"),
        (lambda: ops.linear(H, mx.zeros((3, 64))), "need a last dimension of 64 for `x`, got [2, 128]"),
        (lambda: ops.linear(H, mx.zeros((3,))), "need a weight [rows, cols], got [3]"),
        (lambda: ops.rms_norm(H, mx.zeros(64), 1e-6), "need [128] for `weight`, got [64]"),
        (lambda: ops.rms_norm(mx.array(1.0), None, 1e-6), "need rows [..., cols], got a scalar"),
        (lambda: ops.gelu_tanh(IDS), "need float32, float16 or bfloat16 for `x`, got int32"),
        (lambda: ops.gated_gelu(H, H[:1]), "need two arrays of one shape and dtype"),
        (lambda: ops.rope(H, mx.zeros(8)), "need [batch, heads, tokens, dim] for `x`, got [2, 128]"),
        (lambda: ops.rope(Q, mx.zeros(33)), "need float32 periods for at most 32 pairs, got float32 [33]"),
        (lambda: ops.rope(Q, mx.zeros(32), -1), "need an offset of at least 0, got -1"),
        (lambda: ops.attention(Q[0], K, K, 1.0), "need [batch, heads, tokens, dim] for `q`"),
        (lambda: ops.attention(Q, K, K[:, :, 1:], 1.0), "need keys and values of one shape"),
        (lambda: ops.attention(Q[:, :3], K, K, 1.0), "need query heads divisible by key heads, got 3 and 2"),
        (
            lambda: ops.attention(Q, K[:, :, :2], K[:, :, :2], 1.0, causal=True),
            "at least as many keys as queries",
        ),
        (lambda: ops.attention(Q, K, K, 1.0, window=3), "need `window` and `image_blocks` with `causal`"),
        (lambda: ops.attention(Q, K, K, 1.0, causal=True, mask=mx.ones((3, 5))), "and a mask"),
        (
            lambda: ops.attention(Q, K, K, 1.0, mask=mx.ones((3, 5))),
            "need a bool mask that broadcasts to [1, 4, 3, 5]",
        ),
        (lambda: ops.attention(Q, K, K, 1.0, mask=mx.ones((4, 5)) > 0), "got bool [4, 5]"),
        (
            lambda: ops.attention(Q, K, K, 1.0, causal=True, image_blocks=IDS),
            "need int32 [3] for `image_blocks`",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_one_sentence(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("[") and "\n" not in text and not text.endswith(".")


def test_a_known_target_that_is_no_row_is_refused_and_a_lazy_one_gives_nan() -> None:
    for targets, got in (([0, 10], "got 10 at position 1"), ([-2, 0], "got -2 at position 0")):
        known = mx.array(targets)
        with pytest.raises(ValueError, match=f"need targets between -1 and 9, {got}"):
            ops.tied_logprob(H, known, W, S, B)
        log_probs, sums = ops.tied_logprob(H, known + 0, W, S, B)
        assert mx.isnan(log_probs).tolist() == [target not in range(-1, 10) for target in targets]
        assert mx.isfinite(sums).all()
