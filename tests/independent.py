"""A reader of checkpoints that shares no code with the package: safetensors and plain NumPy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

FLOATS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
INTEGERS = {"U32": np.uint32, "I32": np.int32, "U8": np.uint8}


@dataclass(frozen=True)
class Raw:
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def rows(self) -> np.ndarray:
        """Raw bytes, one row of the first dimension per row."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape[0], -1)

    @property
    def values(self) -> np.ndarray:
        """Decoded numbers: float64, or the integers as they are."""
        if self.dtype in INTEGERS:
            return np.frombuffer(self.data, INTEGERS[self.dtype]).reshape(self.shape)
        raw = np.frombuffer(self.data, FLOATS[self.dtype])
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float64).reshape(self.shape)


def read_all(folder: Path) -> dict[str, Raw]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(file.read_bytes()):
            tensors[name] = Raw(entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return tensors


def config(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text("utf-8"))


def dequantize(tensors: dict[str, Raw], name: str, bits: int = 4, group_size: int = 64) -> np.ndarray:
    """Float64 values of a quantized weight: scale * code + bias, codes as an LSB-first bit stream."""
    codes = unpack(tensors[name].values, bits)
    scales = tensors[name.removesuffix("weight") + "scales"].values.repeat(group_size, axis=1)
    biases = tensors[name.removesuffix("weight") + "biases"].values.repeat(group_size, axis=1)
    return scales * codes + biases


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    stream = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    digits = stream.reshape(len(words), -1, bits)
    return (digits * (1 << np.arange(bits))).sum(axis=2).astype(np.int64)


def value(tensors: dict[str, Raw], name: str) -> np.ndarray:
    """Decoded values of a tensor, quantized or not."""
    return dequantize(tensors, name) if tensors[name].dtype == "U32" else tensors[name].values


def total_bytes(tensors: dict[str, Raw]) -> int:
    sizes = {"U32": 4, "I32": 4, "F32": 4, "BF16": 2, "F16": 2, "U8": 1}
    assert all(len(t.data) == math.prod(t.shape) * sizes[t.dtype] for t in tensors.values())
    return sum(len(t.data) for t in tensors.values())
