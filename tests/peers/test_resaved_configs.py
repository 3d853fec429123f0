"""Checkpoints that transformers 5 saved again, with `rope_parameters` in place of `rope_scaling`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comparing import (
    IMAGE,
    assert_equal,
    assert_peer_departs,
    expected_logits,
    our_logits,
    prompt_tokens,
    reference_logits,
)
from mlx_engines import TOP, load_mlx_vlm, mlx_lm_logits, mlx_vlm_logits
from reference_models import Checkpointed, build_reference, linked

from gemma_surgery.models import load_model

TEXT_LAYOUT = (131,)
IMAGE_LAYOUT = (9, IMAGE, 33, IMAGE, 6)
KINDS = {"text-only": {"multimodal": False}, "VLM": {"top": TOP, "text": {"mm_tokens_per_image": 16}}}


def resaved(source: Checkpointed, folder: Path) -> Path:
    """The released weights under config.json as transformers writes it."""
    source.reference.config.save_pretrained(folder / "written")
    config = json.loads((folder / "written" / "config.json").read_text("utf-8"))
    text = config.get("text_config", config)
    assert text["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert "rope_scaling" not in text
    # Not part of the question, and mlx-lm needs it: transformers keeps it only where it belongs.
    config["vocab_size"] = source.text["vocab_size"]
    return linked(source.folder, folder / "linked", config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resaved_config_means_the_same_to_us(checkpoint, tmp_path, kind):
    source = checkpoint(**KINDS[kind])
    model = load_model(resaved(source, tmp_path))
    layout = IMAGE_LAYOUT if kind == "VLM" else TEXT_LAYOUT
    assert_equal(our_logits(model, source, layout), expected_logits(source, layout), f"re-saved {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loses_the_rotary_factor_of_a_resaved_config(checkpoint, tmp_path, kind):
    source = checkpoint(**KINDS[kind])
    peer = mlx_lm_logits(resaved(source, tmp_path), prompt_tokens(source, TEXT_LAYOUT))
    assert_peer_departs("mlx-lm", peer, expected_logits(source, TEXT_LAYOUT), "rotary factor lost")
    assert_equal(peer, without_factor(source), "mlx-lm and the reference without a factor")


def test_mlx_vlm_loses_the_rotary_factor_of_a_resaved_config(checkpoint, tmp_path):
    source = checkpoint(**KINDS["VLM"])
    peer = mlx_vlm_logits(load_mlx_vlm(resaved(source, tmp_path)), source, TEXT_LAYOUT)
    assert_peer_departs("mlx-vlm", peer, expected_logits(source, TEXT_LAYOUT), "rotary factor lost")
    assert_equal(peer, without_factor(source), "mlx-vlm and the reference without a factor")


@pytest.mark.parametrize("kind", ["text-only", "VLM"])
def test_a_checkpoint_that_transformers_saved_whole_loads(checkpoint, tmp_path, kind):
    source = checkpoint(**KINDS[kind])
    source.reference.save_pretrained(tmp_path / "saved")
    model = load_model(tmp_path / "saved")
    layout = IMAGE_LAYOUT if kind == "VLM" else TEXT_LAYOUT
    assert_equal(our_logits(model, source, layout), expected_logits(source, layout), f"saved whole, {kind}")


def without_factor(source: Checkpointed) -> np.ndarray:
    config = json.loads(json.dumps(source.config))
    config.get("text_config", config)["rope_scaling"] = None
    plain = build_reference(config)
    plain.load_state_dict(source.reference.state_dict())
    return reference_logits(plain, prompt_tokens(source, TEXT_LAYOUT))
