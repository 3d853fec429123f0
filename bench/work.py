"""What a bench does, for whoever times it and for whoever reads the result."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "ours"


@dataclass(frozen=True)
class Work:
    """What one call does.

    Attributes:
        op: as in `gemma_surgery.ops`.
        case: shape, for people.
        dtype: of the activations.
        size_bytes: bytes that must be read from memory, or read and written where both matter.
        operations: products and sums in float32, or what replaces them.
        rate_bytes: bytes that the rate is given in, where these are not `size_bytes`.
    """

    op: str
    case: str
    dtype: str = ""
    size_bytes: int = 0
    operations: int = 0
    rate_bytes: int = 0
