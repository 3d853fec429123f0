"""One small output, and writing it, for the tests beside this file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from gemma_surgery.checkpoint import (
    OutputFolder,
    encode_header,
)

MIB = 1024 * 1024
HEADER, (START,) = encode_header([("a", "U8", (3 * MIB + 777,))])
TOTAL = START + 3 * MIB + 777
BODY = np.random.default_rng(1).integers(0, 255, 3 * MIB + 777, np.uint8)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def write_all(folder: OutputFolder) -> None:
    weights = folder.create_weights("model.safetensors", HEADER, TOTAL)
    weights.write_at(START, memoryview(BODY))
    folder.record("a", {"sha256": hashlib.sha256(BODY).hexdigest()})
    folder.write_file("config.json", b"{}")


def make(path: Path, **options: bool) -> OutputFolder:
    with OutputFolder.begin(path, "f" * 64, TOTAL, **options) as folder:
        write_all(folder)
        folder.commit(b'{"done": true}')
    return folder
