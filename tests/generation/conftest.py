"""A checkpoint whose answers do not end by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_checkpoints import random_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights here: answers that go on until something ends them."""
    return random_checkpoint(tmp_path_factory.mktemp("random") / "original", tiny_tokenizer)
