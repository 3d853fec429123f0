"""Small safetensors files and folders, right and wrong, for the tests beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 2}}


def header_bytes(entries: Any, length: int | None = None) -> bytes:
    """A length field and JSON, whatever `entries` says; text is taken as it is."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write_folder(
    folder: Path,
    files: dict[str, dict[str, np.ndarray]] | None = None,
    config: Any = None,
    index: Any = None,
) -> Path:
    """A checkpoint folder written by the safetensors library."""
    folder.mkdir(parents=True, exist_ok=True)
    if files is None:
        files = {"model.safetensors": {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.int32)}}
    for name, tensors in files.items():
        save_file(tensors, str(folder / name), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
