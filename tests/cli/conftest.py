"""The command line run inside the test process, and checkpoints to run it on."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from compressing import plan_recipe
from demo_checkpoints import random_checkpoint
from PIL import Image

from gemma_surgery.cli import main
from gemma_surgery.surgery.executor import execute


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def document(self) -> dict:
        """The last line of stdout as JSON."""
        assert self.code == 0, self.stderr
        return json.loads(self.lines[-1])


Cli = Callable[..., Finished]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli(*arguments, stdin=...)`: what `main` prints and how it exits; None as stdin is a terminal."""

    def run(*arguments: object, stdin: str | bytes | None = "") -> Finished:
        data = b"" if stdin is None else stdin.encode() if isinstance(stdin, str) else stdin
        stream = io.TextIOWrapper(io.BytesIO(data), "utf-8")
        stream.isatty = lambda: stdin is None  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "argv", ["gemma-surgery", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Finished(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_mobile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint after `mobile`: a pruned vocabulary, smaller images, vision in its own file."""
    target = tmp_path_factory.mktemp("small_mobile") / "mobile"
    execute(plan_recipe(tiny), target)
    return target


@pytest.fixture(scope="session")
def text_only(small_mobile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without its vision file."""
    target = tmp_path_factory.mktemp("text_only") / "language"
    shutil.copytree(small_mobile, target)
    (target / "vision_model.safetensors").unlink()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        tensor: file for tensor, file in index["weight_map"].items() if not file.startswith("vision")
    }
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two different images."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = (folder / "first.png", folder / "second.png")
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return paths


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights here: answers that go on until something ends them."""
    return random_checkpoint(tmp_path_factory.mktemp("random") / "original", tiny_tokenizer)
