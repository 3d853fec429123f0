"""Profiles: measured statistics of a checkpoint, in one safetensors file. Format: docs/format.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.header import encode_header, read_header
from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError

FINGERPRINT_KEY = "checkpoint_fingerprint"
ACTIVATION_SUFFIX = "mean_abs_activation"

Activations = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Profile:
    """Statistics of one checkpoint.

    Attributes:
        path: the file.
        mean_abs_activation: by MLP prefix of the profiled checkpoint (``...layers.3.mlp.``), the mean
            of ``|gelu(gate(x))|`` over calibration tokens, float32 `[F]` (Gemma-Prune, equation 15).
    """

    path: Path
    mean_abs_activation: Activations

    def activation(self, mlp_prefix: str, width: int) -> npt.NDArray[np.float64]:
        """The statistic of one MLP.

        Raises:
            SurgeryError: the profile lacks the layer, or measured another width.
        """
        values = self.mean_abs_activation.get(mlp_prefix)
        if values is None or len(values) != width:
            got = "nothing" if values is None else f"{len(values)}"
            raise SurgeryError(
                "profile", f"need {width} activations for `{mlp_prefix}`, got {got} in `{self.path.name}`"
            )
        return values.astype(np.float64)


def read_profile(path: Path, fingerprint: str) -> Profile:
    """Read a profile of the checkpoint with the given fingerprint.

    Raises:
        SurgeryError: the file is missing or malformed, belongs to another checkpoint, or holds a
            value that is negative or not finite.
    """
    header = read_header(path)
    measured = header.metadata.get(FINGERPRINT_KEY)
    if measured != fingerprint:
        raise SurgeryError(
            "profile",
            f"need a profile of checkpoint {fingerprint[:12]}, got one of {(measured or 'nothing')[:12]} "
            f"in `{path.name}`",
            "profile this checkpoint, or give the checkpoint that the profile was made of",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SurgeryError("profile", f"cannot read `{path}`: {os_reason(error)}") from None
    activations: dict[str, npt.NDArray[np.float32]] = {}
    for name, info in header.tensors.items():
        if not name.endswith(f".{ACTIVATION_SUFFIX}"):
            continue
        if info.dtype != "F32" or len(info.shape) != 1:
            raise SurgeryError(
                "profile", f"need F32 with 1 dimension, got {info.dtype} {list(info.shape)} in `{name}`"
            )
        values = np.frombuffer(data[info.start : info.end], "<f4")
        if not np.isfinite(values).all() or (values < 0).any():
            raise SurgeryError("profile", f"need finite values of at least 0, got others in `{name}`")
        activations[name.removesuffix(ACTIVATION_SUFFIX)] = values
    return Profile(path, activations)


def write_profile(path: Path, fingerprint: str, mean_abs_activation: Activations) -> None:
    """Write a profile; see `Profile` for the arguments."""
    names = sorted(mean_abs_activation)
    entries = [(f"{name}{ACTIVATION_SUFFIX}", "F32", (len(mean_abs_activation[name]),)) for name in names]
    header, _ = encode_header(entries, {FINGERPRINT_KEY: fingerprint})
    body = b"".join(np.asarray(mean_abs_activation[name], "<f4").tobytes() for name in names)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(header + body)
    temporary.replace(path)
