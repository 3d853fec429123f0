"""mlx-lm runs the text of Gemma 3: we agree where it follows the reference, and only there."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from comparing import (
    assert_equal,
    assert_peer_departs,
    expected_logits,
    our_logits,
    prompt_tokens,
    to_numpy,
)
from mlx_engines import TOP, load_mlx_lm, mlx_lm_logits

from gemma_surgery.models import load_model

LAYOUT = (131,)
LOCAL, GLOBAL = "sliding_attention", "full_attention"
KINDS = {
    "text-only model": {"multimodal": False},
    "text of a VLM": {"top": TOP},
    "every second layer global": {"multimodal": False, "text": {"sliding_window_pattern": 2}},
    "one kv head, no rotary scaling": {
        "multimodal": False,
        "text": {"num_key_value_heads": 1, "rope_scaling": None},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_and_the_reference_and_we_agree_on_text(checkpoint, kind):
    source = checkpoint(**KINDS[kind])
    ours, expected = our_logits(load_model(source.folder), source, LAYOUT), expected_logits(source, LAYOUT)
    peer = mlx_lm_logits(source.folder, prompt_tokens(source, LAYOUT))
    assert_equal(peer, expected, f"mlx-lm, {kind}")
    assert_equal(ours, peer, f"ours and mlx-lm, {kind}")


@pytest.mark.parametrize("chunk", [1, 9, 16, 50])
def test_mlx_lm_and_we_agree_on_every_cached_step(checkpoint, chunk):
    source = checkpoint(multimodal=False)
    tokens = mx.array(prompt_tokens(source, LAYOUT))
    ours, peer = load_model(source.folder), load_mlx_lm(source.folder)
    our_cache, peer_cache = ours.make_cache(), peer.make_cache()
    steps = [tokens[:, start : start + chunk] for start in range(0, tokens.shape[1], chunk)]
    got = [to_numpy(ours(step, cache=our_cache)) for step in steps]
    measured = [to_numpy(peer(step, cache=peer_cache)) for step in steps]
    assert_equal(np.concatenate(got, axis=1), np.concatenate(measured, axis=1), f"steps of {chunk}")


def test_mlx_lm_rounds_the_embedding_scale_of_a_float32_checkpoint(checkpoint):
    # The square root of 96 is no bfloat16 number. For bfloat16 checkpoints all agree on the rounded one.
    source = checkpoint(multimodal=False, text={"hidden_size": 96})
    expected = expected_logits(source, LAYOUT)
    peer = mlx_lm_logits(source.folder, prompt_tokens(source, LAYOUT))
    assert_peer_departs("mlx-lm", peer, expected, "embedding scale in bfloat16 for a float32 checkpoint")
    assert_equal(our_logits(load_model(source.folder), source, LAYOUT), expected, "ours, scale in float32")


def test_mlx_lm_ignores_explicit_layer_kinds(checkpoint):
    kinds = [GLOBAL, LOCAL, LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL]
    source = checkpoint(multimodal=False, text={"layer_types": kinds})
    expected = expected_logits(source, LAYOUT)
    peer = mlx_lm_logits(source.folder, prompt_tokens(source, LAYOUT))
    assert_peer_departs("mlx-lm", peer, expected, "`layer_types` ignored")
    assert_equal(
        our_logits(load_model(source.folder), source, LAYOUT), expected, "ours, explicit layer kinds"
    )


def test_mlx_lm_and_we_choose_the_same_tokens_greedily(checkpoint):
    from mlx_lm.generate import generate_step

    source = checkpoint(multimodal=False)
    prompt = mx.array(prompt_tokens(source, (37,))[0])
    peer = [int(token) for token, _ in generate_step(prompt, load_mlx_lm(source.folder), max_tokens=40)]
    model = load_model(source.folder)
    cache, chosen, step = model.make_cache(), [], prompt[None]
    while len(chosen) < len(peer):
        chosen.append(int(np.argmax(to_numpy(model(step, cache=cache))[0, -1])))
        step = mx.array([chosen[-1:]])
    assert chosen == peer
    assert len(set(chosen)) > 5
