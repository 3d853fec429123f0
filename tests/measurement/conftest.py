"""A compressed checkpoint to measure beside the original."""

from __future__ import annotations

from pathlib import Path

import pytest
from compressing import plan_recipe
from demo_checkpoints import random_checkpoint

from gemma_surgery.surgery.executor import execute


@pytest.fixture(scope="session")
def compressed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compressed") / "mobile"
    execute(plan_recipe(tiny), target)
    return target


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights here: answers that go on until something ends them."""
    return random_checkpoint(tmp_path_factory.mktemp("random") / "original", tiny_tokenizer)
