"""Checkpoints to calibrate, and what to calibrate them on."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from compressing import plan_recipe

from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.demo_model.scenes import random_scene, render
from gemma_surgery.surgery.executor import execute


@pytest.fixture(scope="session")
def dense() -> Path:
    return demo_model_path("bf16")


@pytest.fixture(scope="session")
def quantized() -> Path:
    return demo_model_path("4bit")


@pytest.fixture(scope="session")
def mobile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint after `mobile`: token map, per-layer widths, padded vision MLP, split files."""
    target = tmp_path_factory.mktemp("mobile") / "mobile"
    execute(plan_recipe(tiny), target)
    return target


@pytest.fixture(scope="session")
def text_only(mobile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without its vision file."""
    target = tmp_path_factory.mktemp("text_only") / "language"
    shutil.copytree(mobile, target)
    (target / "vision_model.safetensors").unlink()
    path = target / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = index["weight_map"].items()
    index["weight_map"] = {tensor: file for tensor, file in files if not file.startswith("vision")}
    path.write_text(json.dumps(index))
    return target


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two drawn scenes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(5)
    for index in range(2):
        render(random_scene(rng), 224).save(folder / f"{index}.png")
    return folder
