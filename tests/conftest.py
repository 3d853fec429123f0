"""Fixtures that many tests share: the trained demo model, and the real tokenizer where it is at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from demo_checkpoints import copy_tokenizer, copy_with_duplicate_head

from gemma_surgery.demo_model import demo_model_path

REAL_TOKENIZER = Path(__file__).parents[2] / "shared/data/gemma3-tokenizer"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 4-bit demo model with a duplicate head; read-only by convention."""
    return copy_with_duplicate_head(tmp_path_factory.mktemp("tiny") / "original")


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as trained: a Hugging Face bf16 checkpoint."""
    return shutil.copytree(demo_model_path("bf16"), tmp_path_factory.mktemp("tiny_dense") / "original")


@pytest.fixture(scope="session")
def real_tokenizer() -> Path:
    if not (REAL_TOKENIZER / "tokenizer.json").is_file():
        pytest.skip("the real Gemma 3 tokenizer is not at hand")
    return REAL_TOKENIZER
