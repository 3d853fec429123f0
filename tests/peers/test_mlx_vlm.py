"""mlx-vlm: its departures from the reference, one at a time, each shown to be the whole difference.

For each: mlx-vlm is far from transformers, we are not, and mlx-vlm with that one thing put right is close.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from comparing import (
    IMAGE,
    Layout,
    assert_equal,
    assert_peer_departs,
    expected_logits,
    our_logits,
    prompt_tokens,
    random_pixels,
    reference_logits,
    to_numpy,
)
from mlx.nn import Module
from mlx_engines import (
    TOP,
    image_features,
    load_mlx_vlm,
    mlx_vlm_logits,
    mlx_vlm_next_token,
    vision_patches,
)
from reference_models import Checkpointed

from gemma_surgery.models import load_model

LAYOUT: Layout = (9, IMAGE, 33, IMAGE, 6)
TEXT_LAYOUT: Layout = (131,)
# `hidden_size` at the top: mlx-vlm divides image features by its square root and by default takes 2048.
SCALED = TOP | {"hidden_size": 64}
PER_IMAGE = {"mm_tokens_per_image": 16}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
RIGHT_BUT_CAUSAL = {"top": SCALED, "text": PER_IMAGE}

SETTINGS = {
    "`layer_types` ignored": {"layer_types": [GLOBAL, LOCAL, LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL]},
    "embedding scale in bfloat16 for a float32 checkpoint": {"hidden_size": 96},
    "`rope_theta` ignored": {"rope_theta": 50_000.0},
}


def repair_epsilon(model: Module) -> Module:
    model.vision_tower.vision_model.post_layernorm.eps = 1e-6
    return model


def reference_patches(source: Checkpointed, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return source.reference.model.vision_tower(channels_first).last_hidden_state.numpy()


def reference_features(source: Checkpointed, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return source.reference.model.get_image_features(channels_first).pooler_output.numpy()


def test_mlx_vlm_and_the_reference_and_we_agree_on_text(checkpoint):
    source = checkpoint(**RIGHT_BUT_CAUSAL)
    expected = expected_logits(source, TEXT_LAYOUT)
    peer = mlx_vlm_logits(load_mlx_vlm(source.folder), source, TEXT_LAYOUT)
    assert_equal(peer, expected, "mlx-vlm, text")
    assert_equal(our_logits(load_model(source.folder), source, TEXT_LAYOUT), peer, "ours and mlx-vlm, text")


def test_mlx_vlm_lets_image_tokens_see_only_what_precedes_them(checkpoint):
    source = checkpoint(**RIGHT_BUT_CAUSAL)
    expected = expected_logits(source, LAYOUT)
    peer = mlx_vlm_logits(repair_epsilon(load_mlx_vlm(source.folder)), source, LAYOUT)
    assert_peer_departs("mlx-vlm", peer, expected, "causal attention inside an image")
    assert_equal(our_logits(load_model(source.folder), source, LAYOUT), expected, "ours, attention both ways")
    causal = reference_logits(source.reference, prompt_tokens(source, LAYOUT), random_pixels(source, LAYOUT))
    assert_equal(peer, causal, "mlx-vlm and the reference made causal")


def test_what_mlx_vlm_generates_shows_its_causal_images(checkpoint):
    source = checkpoint(**RIGHT_BUT_CAUSAL)
    tokens, pixels = prompt_tokens(source, LAYOUT), random_pixels(source, LAYOUT)
    model = repair_epsilon(load_mlx_vlm(source.folder))
    peer = mlx_vlm_next_token(model, source, LAYOUT)
    right = log_softmax(expected_logits(source, LAYOUT)[0, -1])
    causal = log_softmax(reference_logits(source.reference, tokens, pixels)[0, -1])
    ours = log_softmax(our_logits(load_model(source.folder), source, LAYOUT)[0, -1])
    assert_peer_departs("mlx-vlm", peer, right, "causal attention inside an image, in `generate_step`")
    assert_equal(ours, right, "ours, next token")
    assert_equal(peer, causal, "`generate_step` and the reference made causal")


def test_mlx_vlm_scales_image_features_by_a_default_width(checkpoint):
    source = checkpoint(top=TOP, text=PER_IMAGE)
    pixels = random_pixels(source, LAYOUT)
    expected = reference_features(source, pixels)
    model = repair_epsilon(load_mlx_vlm(source.folder))
    # As they enter the first layer: divided by one square root, multiplied by the other.
    seen = to_numpy(image_features(model, pixels)) * (64**0.5 / model.config.hidden_size**0.5)
    assert_peer_departs("mlx-vlm", seen, expected, "image features divided by the square root of 2048")
    assert_equal(seen * (2048 / 64) ** 0.5, expected, "mlx-vlm with the scale put right")
    ours = to_numpy(load_model(source.folder).embed_images(mx.array(pixels)))
    assert_equal(ours, expected, "ours, image features")


@pytest.mark.parametrize("top", [TOP, SCALED], ids=["default width", "right width"])
def test_the_image_scale_of_mlx_vlm_shows_in_its_logits(checkpoint, top):
    source = checkpoint(top=top, text=PER_IMAGE)
    tokens, pixels = prompt_tokens(source, LAYOUT), random_pixels(source, LAYOUT)
    # Causal like mlx-vlm, so that only the scale is left.
    causal = reference_logits(source.reference, tokens, pixels)
    peer = mlx_vlm_logits(repair_epsilon(load_mlx_vlm(source.folder)), source, LAYOUT)
    if top is SCALED:
        assert_equal(peer, causal, "mlx-vlm with `hidden_size` at the top")
    else:
        assert_peer_departs("mlx-vlm", peer, causal, "image features divided by the square root of 2048")


def test_mlx_vlm_takes_another_epsilon_after_the_vision_layers(checkpoint):
    source = checkpoint(**RIGHT_BUT_CAUSAL)
    pixels = random_pixels(source, LAYOUT)
    expected = reference_patches(source, pixels)
    model = load_mlx_vlm(source.folder)
    peer = vision_patches(model, pixels)
    assert_peer_departs("mlx-vlm", peer, expected, "`post_layernorm` with an epsilon of 1e-5")
    assert_equal(vision_patches(repair_epsilon(model), pixels), expected, "mlx-vlm with an epsilon of 1e-6")
    ours = load_model(source.folder)
    assert_equal(
        to_numpy(ours.embed_images(mx.array(pixels))),
        reference_features(source, pixels),
        "ours, image features",
    )


def test_mlx_vlm_reads_the_tokens_per_image_from_the_text_config(checkpoint):
    # 16 x 16 patches: the default of 256 tokens fits, so nothing fails, and each image becomes 256 tokens.
    patches = {"image_size": 112, "patch_size": 7}
    source = checkpoint(top=TOP, vision=patches)
    pixels = random_pixels(source, LAYOUT)
    peer = image_features(load_mlx_vlm(source.folder), pixels)
    expected = reference_features(source, pixels)
    assert expected.shape[1] == 16
    assert peer.shape[1] == 256, "mlx-vlm changed: it no longer takes 256 image tokens from its text config"
    ours = to_numpy(load_model(source.folder).embed_images(mx.array(pixels)))
    assert_equal(ours, expected, "ours, tokens per image from the top level")
    nested = checkpoint(top=SCALED, vision=patches, text=PER_IMAGE)
    model = repair_epsilon(load_mlx_vlm(nested.folder))
    assert_equal(to_numpy(image_features(model, pixels)), reference_features(nested, pixels), "stated twice")


@pytest.mark.parametrize("what", SETTINGS)
def test_mlx_vlm_departs_in_the_text_of_some_settings(checkpoint, what):
    source = checkpoint(top=TOP, text=PER_IMAGE | SETTINGS[what])
    expected = expected_logits(source, TEXT_LAYOUT)
    peer = mlx_vlm_logits(load_mlx_vlm(source.folder), source, TEXT_LAYOUT)
    assert_peer_departs("mlx-vlm", peer, expected, what)
    assert_equal(our_logits(load_model(source.folder), source, TEXT_LAYOUT), expected, f"ours, {what}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
