"""Copies of checkpoint folders with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx


def edited_copy(source: Path, target: Path, change: Callable[[dict], None]) -> Path:
    """Copy a folder and change its config.json."""
    shutil.copytree(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")
    return target


def retensored_copy(source: Path, target: Path, change: Callable[[dict[str, mx.array]], None]) -> Path:
    """Copy a folder with one weight file and change its tensors."""
    shutil.copytree(source, target)
    path = str(target / "model.safetensors")
    tensors = {name: mx.array(array) for name, array in mx.load(path).items()}
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    return target
