"""Negative controls: each rule of the model broken once, on the same weights, must show in the logits.

They are what makes the equalities of the other files mean something.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from comparing import (
    IMAGE,
    assert_departs,
    assert_equal,
    expected_logits,
    our_logits,
    prompt_tokens,
    random_pixels,
    to_numpy,
)
from reference_models import with_config

from gemma_surgery import ops
from gemma_surgery.models import Gemma3Model, load_model

LAYOUT = (9, IMAGE, 33, IMAGE, 6)
LOCAL, GLOBAL = "sliding_attention", "full_attention"

WRONG_CONFIGS = {
    "global rotary factor missing": {"text": {"rope_scaling": None}},
    "global rotary factor 4": {"text": {"rope_scaling": {"factor": 4.0, "rope_type": "linear"}}},
    "global rotary base": {"text": {"rope_theta": 500_000.0}},
    "local rotary base": {"text": {"rope_local_base_freq": 20_000.0}},
    "window one longer": {"text": {"sliding_window": 17}},
    "window one shorter": {"text": {"sliding_window": 15}},
    "attention scale of the head dimension": {"text": {"query_pre_attn_scalar": 32}},
    "norm epsilon": {"text": {"rms_norm_eps": 1e-5}},
    "two layer kinds swapped": {"text": {"layer_types": [LOCAL] * 4 + [GLOBAL, LOCAL, LOCAL]}},
    "vision epsilon": {"vision": {"layer_norm_eps": 1e-5}},
    "vision heads": {"vision": {"num_attention_heads": 3}},
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_wrong_setting_is_noticed(checkpoint, tmp_path: Path, case):
    source = checkpoint()
    model = load_model(with_config(source, tmp_path / "wrong", **WRONG_CONFIGS[case]))
    assert_departs(our_logits(model, source, LAYOUT), expected_logits(source, LAYOUT), case)


def embedding_scale_rounded(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the rounding of 50.596 to bfloat16 does, in the wrong place.
    model.vocabulary._scale = model.vocabulary._scale * (50.5 / 50.596)


def norm_weights_not_shifted_by_one(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.decoder.layers:
        layer.self_attn.q_norm.scale = layer.self_attn.q_norm.scale - 1


def post_layernorm_epsilon(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.embed_images(mx.zeros((1, 112, 112, 3)))
    assert model._vision is not None
    model._vision.post_layernorm._eps = 1e-5


def image_features_scaled_like_text(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda pixels: embed(pixels) * 1.116)


def images_seen_causally(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda inputs, cache, blocks=None: forward(inputs, cache))


def images_seen_as_one(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda inputs, cache, blocks=None: forward(inputs, cache, mx.minimum(blocks, 1))
    )


def blocks_that_ignore_the_window(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(queries, keys, values, scale, *, causal=False, window=None, image_blocks=None):
        if image_blocks is None:  # Attention among patches.
            return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
        tokens = mx.arange(queries.shape[2])
        allowed = tokens[None] <= tokens[:, None]
        if window is not None:
            allowed = allowed & (tokens[None] > tokens[:, None] - window)
        allowed = allowed | ((image_blocks[:, None] == image_blocks[None]) & (image_blocks[:, None] > 0))
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=allowed)

    monkeypatch.setattr(ops, "attention", wide)


def gelu_without_its_tanh_form(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def sigmoid_form(x: mx.array) -> mx.array:
        return x * mx.sigmoid(1.702 * x)

    monkeypatch.setattr(ops, "gelu_tanh", sigmoid_form)
    monkeypatch.setattr(ops, "gated_gelu", lambda gate, up: sigmoid_form(gate) * up)


def rows_and_columns_of_patches_swapped(model: Gemma3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda pixels: embed(pixels.transpose(0, 2, 1, 3)))


WRONG_RULES: list[Callable[[Gemma3Model, pytest.MonkeyPatch], None]] = [
    embedding_scale_rounded,
    norm_weights_not_shifted_by_one,
    post_layernorm_epsilon,
    image_features_scaled_like_text,
    images_seen_causally,
    images_seen_as_one,
    gelu_without_its_tanh_form,
    rows_and_columns_of_patches_swapped,
]


@pytest.mark.parametrize("rule", WRONG_RULES, ids=lambda rule: rule.__name__)
def test_a_wrong_rule_is_noticed(checkpoint, monkeypatch, rule):
    source = checkpoint()
    model = load_model(source.folder)
    rule(model, monkeypatch)
    assert_departs(our_logits(model, source, LAYOUT), expected_logits(source, LAYOUT), rule.__name__)


def test_an_image_block_that_ignores_the_window_is_noticed(checkpoint, monkeypatch):
    source = checkpoint(text={"sliding_window": 5})
    model = load_model(source.folder)
    assert_equal(our_logits(model, source, LAYOUT), expected_logits(source, LAYOUT), "window inside a block")
    blocks_that_ignore_the_window(model, monkeypatch)
    what = "window ignored inside a block"
    assert_departs(our_logits(model, source, LAYOUT), expected_logits(source, LAYOUT), what)


def test_images_in_the_wrong_order_are_noticed(checkpoint):
    source = checkpoint()
    tokens, pixels = prompt_tokens(source, LAYOUT), random_pixels(source, LAYOUT)
    model = load_model(source.folder)
    swapped = to_numpy(model(mx.array(tokens), mx.array(np.ascontiguousarray(pixels[::-1]))))
    assert_departs(swapped, expected_logits(source, LAYOUT), "images in the wrong order")
