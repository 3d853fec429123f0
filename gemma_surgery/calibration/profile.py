"""Profiles: measured statistics of a checkpoint, in one safetensors file. Format: docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.header import Header, read_header
from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError

FINGERPRINT_KEY = "checkpoint_fingerprint"
DATA_KEY = "data_sha256"
TOKENS_KEY = "tokens"

# Last parts of tensor names.
ACTIVATION = "mean_abs_activation"
INFLUENCE = "block_influence"
HEADS = "head_importance"
INPUT_MEAN = "input_mean"
FLUCTUATION = "input_fluctuation"
OUTPUT_SHARE = "output_share"
DIAGONAL = "hessian_diagonal"
CORRELATION = "hessian_correlation"
COUNT = "hessian_count"

DTYPES: dict[str, np.dtype[np.generic]] = {"F32": np.dtype("<f4"), "I16": np.dtype("<i2")}
# Correlations lie in [-1, 1].
CORRELATION_STEPS = 32767
# Rows and columns transposed at a time.
MIRROR_BLOCK = 512

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """Statistics of one checkpoint. Names and layer numbers are those of that checkpoint.

    Attributes:
        path: the file.
        header: of the file.
    """

    path: Path
    header: Header

    @cached_property
    def sha256(self) -> str:
        """Identity of everything in the file."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
        except OSError as error:
            _refuse(f"cannot read `{self.path}`: {os_reason(error)}")
        return digest.hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens that it was measured on; 0 if the file does not say."""
        text = self.header.metadata.get(TOKENS_KEY, "0")
        return int(text) if text.isdigit() else 0

    def activation(self, mlp_prefix: str, width: int) -> Floats:
        """Mean over tokens of `|gelu(gate(x))|` per neuron, `[F]` (Gemma-Prune, equation 15).

        Args:
            mlp_prefix: e.g. ``language_model.model.layers.3.mlp.``.
            width: F.

        Raises:
            SurgeryError: here and below, the profile lacks it, measured another width, or holds nonsense.
        """
        return self._not_negative(f"{mlp_prefix}{ACTIVATION}", width)

    def input_mean(self, linear: str, width: int) -> Floats:
        """Mean over samples of the means of a linear layer's input, `[F]` (FLAP's baseline).

        Args:
            linear: a module path, e.g. ``language_model.model.layers.3.mlp.down_proj``.
            width: columns of its matrix.
        """
        return self._vector(f"{linear}.{INPUT_MEAN}", width)

    def input_fluctuation(self, linear: str, width: int) -> Floats:
        """FLAP's fluctuation of a linear layer's input, `[F]`; arguments as those of `input_mean`."""
        return self._not_negative(f"{linear}.{FLUCTUATION}", width)

    def output_share(self, linear: str, width: int) -> Floats:
        """What each input of `down_proj` adds to how its output fluctuates, of 1, `[F]`.

        FLAP's score, the fluctuation times the squared norm of the column, as a share of the layer's sum:
        layers compare by it, because the norm behind each MLP takes its size away. Arguments as those of
        `input_mean`.
        """
        return self._not_negative(f"{linear}.{OUTPUT_SHARE}", width)

    def has_output_share(self, linear: str) -> bool:
        """Whether the profile knows it; those of earlier versions do not."""
        return f"{linear}.{OUTPUT_SHARE}" in self.header.tensors

    def block_influence(self, layer_prefix: str) -> float:
        """1 minus the mean cosine of a layer's input and output (ShortGPT)."""
        return float(self._vector(f"{layer_prefix}{INFLUENCE}", 1)[0])

    def head_importance(self, attention_prefix: str, num_heads: int) -> Floats:
        """Mean over tokens of the squared norm of what each head adds to the output, `[H]`."""
        return self._not_negative(f"{attention_prefix}{HEADS}", num_heads)

    def has_hessian(self, linear: str) -> bool:
        """Whether the profile was made with the Hessian of this layer."""
        return {f"{linear}.{part}" for part in (COUNT, DIAGONAL)} <= self.header.tensors.keys()

    def hessian_count(self, linear: str) -> int:
        """Inputs (tokens or patches) that the Hessian of a layer is the mean over."""
        return int(self._not_negative(f"{linear}.{COUNT}", 1)[0])

    def hessian(self, linear: str, width: int) -> npt.NDArray[np.float32]:
        """Mean over tokens of `x x^T` of a linear layer's input, float32 `[F, F]`, symmetric.

        The diagonal is exact, other entries within 1.6e-5 of the geometric mean of theirs.
        """
        if not self.has_hessian(linear):
            _refuse(
                f"need the Hessian of `{linear}`, got none in `{self.path.name}`",
                "profile with `--hessians`",
            )
        diagonal = self._not_negative(f"{linear}.{DIAGONAL}", width)
        packed = self._read(f"{linear}.{CORRELATION}", width * (width - 1) // 2, "I16")
        root = np.sqrt(diagonal).astype(np.float32)
        hessian = np.empty((width, width), np.float32)
        start = 0
        for row in range(width):
            count = width - row - 1
            hessian[row, row] = diagonal[row]
            upper = packed[start : start + count] * (root[row] / np.float32(CORRELATION_STEPS))
            hessian[row, row + 1 :] = upper * root[row + 1 :]
            start += count
        for first in range(0, width, MIRROR_BLOCK):
            for second in range(first, width, MIRROR_BLOCK):
                rows, columns = slice(first, first + MIRROR_BLOCK), slice(second, second + MIRROR_BLOCK)
                if first == second:
                    block = np.triu(hessian[rows, columns])
                    hessian[rows, columns] = block + np.triu(block, 1).T
                else:
                    hessian[columns, rows] = hessian[rows, columns].T
        return hessian

    def _not_negative(self, name: str, size: int) -> Floats:
        values = self._vector(name, size)
        if (values < 0).any():
            _refuse(f"need values of at least 0, got {values.min():g} in `{name}` of `{self.path.name}`")
        return values

    def _vector(self, name: str, size: int) -> Floats:
        values = self._read(name, size, "F32").astype(np.float64)
        if not np.isfinite(values).all():
            _refuse(f"need finite values, got others in `{name}` of `{self.path.name}`")
        return values

    def _read(self, name: str, size: int, dtype: str) -> npt.NDArray[np.generic]:
        info = self.header.tensors.get(name)
        if info is None or info.shape != (size,) or info.dtype != dtype:
            got = "nothing" if info is None else f"{info.dtype} {list(info.shape)}"
            _refuse(f"need {size} values under `{name}`, got {got} in `{self.path.name}`")
        try:
            with self.path.open("rb") as file:
                file.seek(info.start)
                data = file.read(info.size_bytes)
        except OSError as error:
            _refuse(f"cannot read `{self.path}`: {os_reason(error)}")
        if len(data) != info.size_bytes:
            _refuse(f"need {info.size_bytes:,} bytes of `{name}`, got {len(data):,} from `{self.path.name}`")
        return np.frombuffer(data, DTYPES[dtype])


def read_profile(path: Path, fingerprint: str) -> Profile:
    """Open a profile of the checkpoint with the given fingerprint; statistics are read when asked for.

    Raises:
        SurgeryError: the file is missing or malformed, or belongs to another checkpoint.
    """
    header = read_header(path)
    measured = header.metadata.get(FINGERPRINT_KEY)
    if measured != fingerprint:
        _refuse(
            f"need a profile of checkpoint {fingerprint[:12]}, got one of {(measured or 'nothing')[:12]} "
            f"in `{path.name}`",
            "profile this checkpoint, or give the checkpoint that the profile was made of",
        )
    return Profile(path, header)


def pack_hessian(
    linear: str, hessian: npt.NDArray[np.float32], count: int
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """The stored parts of a Hessian `[F, F]` over `count` inputs, of which the upper triangle is read."""
    yield f"{linear}.{COUNT}", np.asarray([count], np.float32)
    diagonal = np.maximum(np.diagonal(hessian), 0)
    yield f"{linear}.{DIAGONAL}", diagonal.astype(np.float32)
    root = np.sqrt(diagonal)
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    width = len(hessian)
    packed = np.empty(width * (width - 1) // 2, np.int16)
    start = 0
    for row in range(width):
        upper = hessian[row, row + 1 :] * inverse[row + 1 :] * (inverse[row] * CORRELATION_STEPS)
        packed[start : start + len(upper)] = np.rint(np.clip(upper, -CORRELATION_STEPS, CORRELATION_STEPS))
        start += len(upper)
    yield f"{linear}.{CORRELATION}", packed


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("profile", message, hint) from None
