"""Which inputs are training data and which are held out: decided by a hash of the content alone."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "held_out"]
HELD_OUT_PERCENT = 10


def is_held_out(key: str) -> bool:
    """Whether the content that `key` spells out is kept from training, the same on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def split_of(key: str) -> Split:
    """The side that the content `key` belongs to."""
    return "held_out" if is_held_out(key) else "train"
