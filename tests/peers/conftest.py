"""Peers run without a network, and these tests describe exactly the versions that pyproject.toml pins."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before anything imports a peer.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
MISSING = [name for name in ("torch", "transformers", "mlx_lm", "mlx_vlm") if find_spec(name) is None]
if MISSING:
    raise pytest.UsageError(f"need {', '.join(MISSING)}, which this environment lacks: run `make test-peers`")

from reference_models import Checkpointed, make_checkpoint  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

Make = Callable[..., Checkpointed]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Random-weight checkpoints by their settings, each made once."""
    made: dict[str, Checkpointed] = {}

    def make(**settings: object) -> Checkpointed:
        key = repr(sorted(settings.items()))
        if key not in made:
            folder: Path = tmp_path_factory.mktemp("checkpoint")
            made[key] = make_checkpoint(folder, **settings)  # type: ignore[arg-type]
        return made[key]

    return make
