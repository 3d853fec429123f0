"""Checkpoints that transformers 5 saved spell the vision tower in another way, and are the same model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from compressing import folder_hashes, plan_recipe
from editing import retensored_copy

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.models import load_model
from gemma_surgery.surgery.executor import execute


def shorten(tensors):
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        tensors[name.replace(".vision_model.", ".")] = tensors.pop(name)


def test_names_are_given_as_released(tiny_dense, tmp_path):
    saved = open_checkpoint(retensored_copy(tiny_dense, tmp_path / "saved", shorten))
    assert set(saved.tensors) == set(open_checkpoint(tiny_dense).tensors)
    assert any(tensor.name_in_file.startswith("vision_tower.encoder.") for tensor in saved.tensors.values())


def test_the_engine_runs_them(tiny_dense, tmp_path):
    model, saved = (
        load_model(path) for path in (tiny_dense, retensored_copy(tiny_dense, tmp_path / "saved", shorten))
    )
    size = model.config.vision.image_size
    pixels = mx.array(np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32))
    images = [np.asarray(one.embed_images(pixels).astype(mx.float32)) for one in (model, saved)]
    np.testing.assert_array_equal(*images)


def test_compressing_them_gives_the_same_weights(tiny_dense, tmp_path):
    saved = retensored_copy(tiny_dense, tmp_path / "saved", shorten)
    hashes = []
    for name, source in (("a", tiny_dense), ("b", saved)):
        execute(plan_recipe(source), tmp_path / name)
        hashes.append(folder_hashes(tmp_path / name))
    for file in ("language_model.safetensors", "vision_model.safetensors", "config.json"):
        assert hashes[0][file] == hashes[1][file], file
