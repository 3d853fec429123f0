"""Checkpoints that we cut against the reference with the same edits applied to its own weights."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from comparing import (
    IMAGE,
    Layout,
    assert_departs,
    assert_equal,
    random_pixels,
    reference_logits,
    to_numpy,
)
from compressing import SCALED, compress_steps, plan_recipe
from dense_edits import Edits, edited
from independent import read_all
from reference_models import Checkpointed, with_stored_scale
from stored_values import reference_of_file
from tiny_references import make_tiny, tokens_among

from gemma_surgery.models import load_model
from gemma_surgery.surgery.executor import execute

STEPS = {
    "tie_head": "",
    "prune_vocabulary": 'keep = ["ascii", "typographic"]',
    "pad_vision_mlp": "",
    "drop_layers": "last = 2",
    "reduce_resolution": "image_size = 168",
    "prune_neurons": "protect_first = 2",
    "split_weights": "",
}
# What the reference has to do for each step; the others must not change a logit of a kept token.
EDITS = {
    "pad_vision_mlp": {"vision_multiple": 64},
    "drop_layers": {"drop_last": 2},
    "reduce_resolution": {"image_size": 168},
    "prune_neurons": {"protect_first": 2},
}
ALL_EDITS = {key: value for edits in EDITS.values() for key, value in edits.items()}
# Beyond the window of 64.
LAYOUTS: dict[str, Layout] = {"text": (150,), "images": (9, IMAGE, 90, IMAGE, 6)}


def recipe(*steps: str) -> str:
    return "\n".join(f'[[steps]]\nstep = "{step}"\n{STEPS[step]}\n' for step in steps)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Checkpointed:
    return make_tiny(tmp_path_factory.mktemp("dense") / "source", tiny_tokenizer, torch.float32, head=True)


@pytest.fixture(scope="module")
def mobile_dense(dense: Checkpointed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compress_steps(dense.folder, tmp_path_factory.mktemp("mobile"), recipe(*STEPS))


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """The shipped `mobile`, quantized, of a bfloat16 checkpoint."""
    folder = tmp_path_factory.mktemp("quantized")
    source = make_tiny(folder / "source", tiny_tokenizer, torch.bfloat16, head=True)
    execute(plan_recipe(source.folder, "mobile", SCALED), folder / "mobile", threads=2)
    return folder / "mobile"


def kept_ids(folder: Path) -> np.ndarray:
    tensors = read_all(folder)
    return np.flatnonzero(tensors["language_model.model.embed_tokens.token_map"].values)


def both_logits(
    folder: Path, config: dict, reference: torch.nn.Module, kept: np.ndarray, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[1, T, kept]` of our engine on the folder, and of the reference."""
    shown = Checkpointed(folder, config, reference)
    tokens, pixels = tokens_among(shown, layout, kept), random_pixels(shown, layout)
    expected = reference_logits(reference, tokens, pixels, config["image_token_index"])[..., kept]
    model = load_model(folder, dtype=mx.float32)
    rows = model(mx.array(tokens), None if pixels is None else mx.array(pixels))
    logits = to_numpy(model.full_logits(rows))
    assert logits.shape[-1] == config["text_config"]["vocab_size"]
    pruned = np.setdiff1d(np.arange(logits.shape[-1]), kept)
    assert np.isneginf(logits[..., pruned]).all()
    return logits[..., kept], expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dense_mobile_checkpoint_equals_the_edited_reference(dense, mobile_dense, layout):
    config, reference = edited(dense, Edits(**ALL_EDITS))
    kept = kept_ids(mobile_dense)
    assert 500 < len(kept) < 1800
    got, expected = both_logits(mobile_dense, config, reference, kept, LAYOUTS[layout])
    assert_equal(got, expected, f"dense mobile, {layout}")


@pytest.mark.parametrize(
    "left_out", [key for key in ALL_EDITS if key not in ("image_size", "vision_multiple")]
)
def test_a_reference_without_one_edit_departs_from_the_mobile_checkpoint(dense, mobile_dense, left_out):
    edits = {key: value for key, value in ALL_EDITS.items() if key != left_out}
    config, reference = edited(dense, Edits(**edits))
    got, expected = both_logits(mobile_dense, config, reference, kept_ids(mobile_dense), LAYOUTS["images"])
    assert_departs(got, expected, f"without {left_out}")


def test_positions_resampled_in_another_way_depart_from_the_mobile_checkpoint(dense, mobile_dense):
    config, reference = edited(dense, Edits(**ALL_EDITS))
    table = dense.reference.model.vision_tower.embeddings.position_embedding.weight
    grid = table.detach().reshape(16, 16, -1)[:12, :12].reshape(144, -1)
    with torch.no_grad():
        reference.model.vision_tower.embeddings.position_embedding.weight.copy_(grid)
    got, expected = both_logits(mobile_dense, config, reference, kept_ids(mobile_dense), LAYOUTS["images"])
    assert_departs(got, expected, "positions cut out instead of resampled")


@pytest.mark.parametrize("step", STEPS)
def test_each_step_alone_equals_the_edited_reference(dense, tmp_path, step):
    folder = compress_steps(
        dense.folder, tmp_path, recipe("tie_head", step) if step != "tie_head" else recipe(step)
    )
    config, reference = edited(dense, Edits(**EDITS.get(step, {})))
    vocabulary = np.arange(config["text_config"]["vocab_size"])
    kept = kept_ids(folder) if step == "prune_vocabulary" else vocabulary
    got, expected = both_logits(folder, config, reference, kept, LAYOUTS["images"])
    assert_equal(got, expected, f"{step} alone")


def test_the_kept_tokens_are_those_of_printable_ascii_and_more(dense, mobile_dense):
    vocabulary = json.loads((dense.folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ascii_ids = [
        token_id
        for token, token_id in vocabulary.items()
        if all(32 <= ord(character) <= 126 for character in token.replace("▁", " "))
        and not token.startswith("<unused")
    ]
    assert len(ascii_ids) > 300
    assert set(ascii_ids) <= set(kept_ids(mobile_dense).tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_quantized_mobile_checkpoint_equals_a_reference_of_its_decoded_values(mobile, layout):
    config, reference = reference_of_file(mobile)
    got, expected = both_logits(
        mobile, config, with_stored_scale(reference), kept_ids(mobile), LAYOUTS[layout]
    )
    assert_equal(got, expected, f"quantized mobile, {layout}")


def test_a_reference_without_one_neuron_departs_from_the_quantized_mobile_checkpoint(mobile):
    config, reference = reference_of_file(mobile)
    reference.model.language_model.layers[3].mlp.down_proj.weight.data[:, 5] = 0
    layout = LAYOUTS["text"]
    got, expected = both_logits(mobile, config, with_stored_scale(reference), kept_ids(mobile), layout)
    assert_departs(got, expected, "one neuron less", margin=1e-3)


def test_a_language_only_folder_gives_the_logits_of_the_whole_one(mobile, tmp_path):
    for file in mobile.iterdir():
        if not file.name.startswith("vision_model"):
            (tmp_path / file.name).symlink_to(file)
    config, reference = reference_of_file(mobile)
    kept, layout = kept_ids(mobile), LAYOUTS["text"]
    got, expected = both_logits(tmp_path, config, with_stored_scale(reference), kept, layout)
    assert_equal(got, expected, "language only")
