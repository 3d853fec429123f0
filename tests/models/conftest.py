"""Small checkpoints in the layouts that the engine reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from compressing import plan_recipe

from gemma_surgery.surgery.executor import execute


@pytest.fixture(scope="session")
def mobile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint after `mobile`: token map, per-layer widths, padded vision MLP, split files."""
    target = tmp_path_factory.mktemp("mobile") / "mobile"
    execute(plan_recipe(tiny), target)
    return target
