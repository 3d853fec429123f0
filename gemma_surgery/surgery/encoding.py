"""How a logical matrix is stored: dense, or packed codes with scales and biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from gemma_surgery.checkpoint.dtypes import ITEM_BYTES
from gemma_surgery.errors import SurgeryError

Shape: TypeAlias = "tuple[int, ...]"

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
# Microscaling formats fix everything but the mode: (bits, group size).
MICROSCALING = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
FLOAT_DTYPES = ("F32", "F16", "BF16")
MODES = ("affine", "symmetric", *MICROSCALING)


@dataclass(frozen=True)
class Dense:
    """Plain values of one safetensors dtype."""

    dtype: str

    def describe(self) -> str:
        """Short text for tables, e.g. ``BF16``."""
        return self.dtype


@dataclass(frozen=True)
class Quantized:
    """MLX quantized storage: `weight` u32 codes, `scales` and, for affine modes, `biases`.

    Groups of `group_size` consecutive columns of a row share one scale. `symmetric` is the affine
    format with ``bias = -2**(bits-1) * scale``, so that zero is exact.
    """

    bits: int
    group_size: int
    scale_dtype: str
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode in MICROSCALING:
            if (self.bits, self.group_size) != MICROSCALING[self.mode]:
                need = MICROSCALING[self.mode]
                raise SurgeryError(
                    "quantize",
                    f"mode `{self.mode}` needs bits {need[0]} and group size {need[1]}, "
                    f"got bits {self.bits} and group size {self.group_size}",
                )
        elif self.mode not in MODES:
            raise SurgeryError("quantize", f"need a mode out of {', '.join(MODES)}, got `{self.mode}`")
        elif self.bits not in AFFINE_BITS:
            raise SurgeryError(
                "quantize", f"need bits out of {', '.join(map(str, AFFINE_BITS))}, got {self.bits}"
            )
        elif self.group_size not in AFFINE_GROUPS:
            raise SurgeryError(
                "quantize",
                f"need a group size out of {', '.join(map(str, AFFINE_GROUPS))}, got {self.group_size}",
            )

    @property
    def has_biases(self) -> bool:
        """Whether a `biases` tensor is stored."""
        return self.mode not in MICROSCALING

    @property
    def stored_scale_dtype(self) -> str:
        """The dtype of the `scales` tensor in the file."""
        return self.scale_dtype if self.has_biases else "U8"

    def describe(self) -> str:
        """Short text for tables, e.g. ``4-bit g64``."""
        suffix = "" if self.mode == "affine" else f" {self.mode}"
        return f"{self.bits}-bit g{self.group_size}{suffix}"


Encoding: TypeAlias = "Dense | Quantized"


@dataclass(frozen=True)
class Component:
    """One stored tensor of a logical matrix."""

    role: str
    name: str
    dtype: str
    shape: Shape

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (all but the first dimension)."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


def companion(name: str, role: str) -> str:
    """The stored name of `role` (`scales` or `biases`) beside the quantized weight `name`."""
    return f"{name.removesuffix('weight')}{role}"


def check_divides(name: str, columns: int, encoding: Quantized) -> None:
    """Raise unless whole groups fill a row of `columns` values."""
    if columns % encoding.group_size:
        padded = -(-columns // encoding.group_size) * encoding.group_size
        raise SurgeryError(
            "quantize",
            f"need a last dimension divisible by group size {encoding.group_size}, got {columns} in `{name}`",
            f'pad to {padded}, or keep it dense with `keep = ["{name}"]`',
        )


def components(name: str, shape: Shape, encoding: Encoding) -> tuple[Component, ...]:
    """The tensors that store a logical matrix `name` of `shape` in `encoding`, main one first."""
    if isinstance(encoding, Dense):
        return (Component("weight", name, encoding.dtype, shape),)
    rows, columns = shape
    check_divides(name, columns, encoding)
    groups = columns // encoding.group_size
    parts = [
        Component("weight", name, "U32", (rows, columns * encoding.bits // 32)),
        Component("scales", companion(name, "scales"), encoding.stored_scale_dtype, (rows, groups)),
    ]
    if encoding.has_biases:
        parts.append(Component("biases", companion(name, "biases"), encoding.scale_dtype, (rows, groups)))
    return tuple(parts)


def stored_bytes(name: str, shape: Shape, encoding: Encoding) -> int:
    """Total bytes of the tensors of a logical matrix."""
    return sum(part.size_bytes for part in components(name, shape, encoding))
