"""The models that the benches of whole models run: the demo model, and the 4B shape where it is given."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import SCALED, demo_model_path
from gemma_surgery.measurement.speed import Subject
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.executor import execute

_scratch = TemporaryDirectory(prefix="gemma-surgery-bench-")
MODELS = ("demo, 4-bit", "demo, mobile", "4B, original", "4B, mobile")


def checkpoint_path(name: str, config: pytest.Config) -> Path:
    """Return the folder of a model; the running test is skipped where it was not given."""
    if name == "demo, 4-bit":
        return demo_model_path("4bit")
    if name == "demo, mobile":
        return demo_mobile()
    option = "--original" if name == "4B, original" else "--mobile"
    path = config.getoption(option)
    if path is None:
        pytest.skip(f"no checkpoint was given with {option}")
    if not (path / "tokenizer.json").is_file():
        pytest.skip(f"no `tokenizer.json` in `{path}`")
    return path


@cache
def demo_mobile() -> Path:
    """Compress the demo model, once."""
    target = Path(_scratch.name) / "mobile"
    execute(make_plan(open_checkpoint(demo_model_path("bf16")), load_recipe("mobile", SCALED)), target)
    return target


@cache
def _loaded(path: Path) -> Subject:
    return Subject.load(path)


def subject(name: str, config: pytest.Config) -> Subject:
    """Return a loaded model. The last one stays loaded; all others are let go before another is."""
    path = checkpoint_path(name, config)
    if path not in _last:
        _loaded.cache_clear()
        _last.clear()
        _last.add(path)
    return _loaded(path)


_last: set[Path] = set()
