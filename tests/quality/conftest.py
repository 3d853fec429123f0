"""Passages of the demo model's own world, and compressed forms of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from compressing import SCALED, plan_recipe

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.demo_model.questions import DESCRIBE
from gemma_surgery.demo_model.scenes import caption, random_scene, render
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task
from gemma_surgery.surgery.executor import execute


@pytest.fixture(scope="session")
def dense() -> Path:
    return demo_model_path("bf16")


@pytest.fixture(scope="session")
def passages() -> tuple[Passage, ...]:
    """Unseen tasks of every English kind, with their right answers."""
    rng = random.Random(1)
    tasks = [random_task(rng, kind, split="held_out") for kind in ENGLISH_KINDS * 2]
    return tuple(Passage(task.kind, task.prompt, task.answer) for task in tasks)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Passage, ...]:
    """Unseen scenes with their captions, drawn into a folder."""
    rng, folder = random.Random(2), tmp_path_factory.mktemp("scenes")
    made: list[Passage] = []
    for index in range(2):
        scene = random_scene(rng, split="held_out")
        path = folder / f"{index}.png"
        render(scene).save(path)
        made.append(Passage("scene", DESCRIBE[0], caption(scene), path))
    return tuple(made)


@pytest.fixture(scope="session")
def mobile(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model after `mobile`: fewer layers, neurons and pixels, and an English vocabulary."""
    target = tmp_path_factory.mktemp("mobile") / "mobile"
    execute(plan_recipe(dense, "mobile", SCALED), target)
    return target
