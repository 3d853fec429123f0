"""Outputs of a plain `quantize` load in stock mlx-lm and mlx-vlm and mean the same there."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from comparing import IMAGE, Layout, assert_equal, our_logits, prompt_tokens, random_pixels, to_numpy
from compressing import compress_steps
from mlx.nn import Module
from mlx_engines import image_features, load_mlx_lm, load_mlx_vlm, mlx_vlm_logits
from reference_models import Checkpointed
from tiny_references import make_tiny

from gemma_surgery.models import load_model

TEXT_LAYOUT: Layout = (90,)
IMAGE_LAYOUT: Layout = (9, IMAGE, 33, IMAGE, 6)
PACKINGS = [(4, 64), (8, 32), (3, 128)]


@pytest.fixture(scope="module")
def text_only(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Checkpointed:
    folder = tmp_path_factory.mktemp("text") / "source"
    return make_tiny(folder, tiny_tokenizer, torch.bfloat16, multimodal=False)


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Checkpointed:
    # With the head stored again: mlx-vlm has no tied quantized head.
    return make_tiny(tmp_path_factory.mktemp("vlm") / "source", tiny_tokenizer, torch.bfloat16, head=True)


def quantized(source: Checkpointed, folder: Path, bits: int, group_size: int) -> Path:
    toml = f'[[steps]]\nstep = "quantize"\nbits = {bits}\ngroup_size = {group_size}\n'
    return compress_steps(source.folder, folder, toml)


def in_float32(model: Module) -> Module:
    """Scales, biases and dense weights in float32: products as exact as ours."""
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize(("bits", "group_size"), PACKINGS)
def test_a_quantized_text_only_checkpoint_means_the_same_to_mlx_lm(text_only, tmp_path, bits, group_size):
    folder = quantized(text_only, tmp_path, bits, group_size)
    peer = in_float32(load_mlx_lm(folder))(mx.array(prompt_tokens(text_only, TEXT_LAYOUT)))
    ours = our_logits(load_model(folder, dtype=mx.float32), text_only, TEXT_LAYOUT)
    assert_equal(ours, to_numpy(peer), f"ours and mlx-lm, {bits} bits by {group_size}")


def test_the_text_of_a_quantized_vlm_means_the_same_to_mlx_lm(multimodal, tmp_path):
    folder = quantized(multimodal, tmp_path, 4, 64)
    peer = in_float32(load_mlx_lm(folder))(mx.array(prompt_tokens(multimodal, TEXT_LAYOUT)))
    ours = our_logits(load_model(folder, dtype=mx.float32), multimodal, TEXT_LAYOUT)
    assert_equal(ours, to_numpy(peer), "ours and mlx-lm, text of a VLM")


@pytest.mark.parametrize(("bits", "group_size"), PACKINGS)
def test_a_quantized_vlm_means_the_same_to_mlx_vlm(multimodal, tmp_path, bits, group_size):
    folder = quantized(multimodal, tmp_path, bits, group_size)
    peer = in_float32(load_mlx_vlm(folder))
    model = load_model(folder, dtype=mx.float32)
    ours = our_logits(model, multimodal, TEXT_LAYOUT)
    assert_equal(ours, mlx_vlm_logits(peer, multimodal, TEXT_LAYOUT), f"text, {bits} bits by {group_size}")
    # Put right what mlx-vlm does in its own way; test_mlx_vlm.py has the reasons.
    peer.vision_tower.vision_model.post_layernorm.eps = 1e-6
    peer.multi_modal_projector.tokens_per_side = 4
    peer.multi_modal_projector.avg_pool = mean_of_fours
    pixels = random_pixels(multimodal, IMAGE_LAYOUT)
    features = to_numpy(image_features(peer, pixels))
    assert_equal(
        to_numpy(model.embed_images(mx.array(pixels))), features, f"images, {bits} bits by {group_size}"
    )


def mean_of_fours(patches: mx.array) -> mx.array:
    batch, side, _, width = patches.shape
    return patches.reshape(batch, side // 4, 4, side // 4, 4, width).mean(axis=(2, 4))


def test_a_quantized_vlm_without_its_second_head_fails_in_mlx_vlm(multimodal, tmp_path):
    steps = '[[steps]]\nstep = "quantize"\n[[steps]]\nstep = "tie_head"\n'
    folder = compress_steps(multimodal.folder, tmp_path, steps)
    assert np.isfinite(our_logits(load_model(folder), multimodal, TEXT_LAYOUT)).all()
    try:
        load_mlx_vlm(folder)
    except ValueError as error:
        assert "lm_head.weight" in str(error)
    else:
        pytest.fail(
            "mlx-vlm changed: it loads a quantized checkpoint without `lm_head`; tell it in the guide"
        )
