"""Fixtures that many tests share: small checkpoints, and the real tokenizer where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_surgery.families.tiny import tiny_model, write_tokenizer
from gemma_surgery.surgery.executor import execute
from gemma_surgery.synthesis import synthesis_plan

REAL_TOKENIZER = Path(__file__).parents[2] / "shared/data/gemma3-tokenizer"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A small MLX 4-bit checkpoint with a duplicate head; read-only by convention."""
    target = tmp_path_factory.mktemp("tiny") / "original"
    execute(synthesis_plan("tiny", tiny_model(), tiny_tokenizer), target)
    return target


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """The same model as a Hugging Face bf16 checkpoint."""
    target = tmp_path_factory.mktemp("tiny_dense") / "original"
    execute(synthesis_plan("tiny", tiny_model(quantized=False), tiny_tokenizer), target)
    return target


@pytest.fixture(scope="session")
def real_tokenizer() -> Path:
    if not (REAL_TOKENIZER / "tokenizer.json").is_file():
        pytest.skip("the real Gemma 3 tokenizer is not at hand")
    return REAL_TOKENIZER
