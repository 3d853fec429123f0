"""One text in the tokens of two tokenizers: where both have a token boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_surgery.generation.detokenizer import byte_of

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The places of a text at which both sequences begin a token, in order.

    The text from one place to the next is a unit: one token for both, unless they split it differently.

    Attributes:
        reference: int64 `[n + 1]`, index of the token that begins at each place; the last is the end.
        candidate: the same for the other sequence.
        unmatched: tokens of the reference and of the candidate that begin elsewhere.
    """

    reference: Indices
    candidate: Indices
    unmatched: tuple[int, int]

    def __len__(self) -> int:
        return len(self.reference) - 1


def spell(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[bytes]:
    """What each token writes: one byte for a byte token, the name of a control token."""
    return [_spelling(tokenizer, int(token)) for token in tokens]


def align(reference: Sequence[bytes], candidate: Sequence[bytes]) -> Alignment:
    """Find the places where both sequences begin a token.

    Args:
        reference: what its tokens write, in order.
        candidate: the same text in the other's tokens; where they differ, and where either ends, it stops.
    """
    ends = [_ends(reference), _ends(candidate)]
    same = _common_prefix(b"".join(reference), b"".join(candidate))
    shared = np.intersect1d(ends[0], ends[1])
    shared = shared[shared <= same]
    places = [np.searchsorted(side, shared).astype(np.int64) for side in ends]
    matched = len(shared) - 1
    return Alignment(places[0], places[1], (len(reference) - matched, len(candidate) - matched))


def _ends(pieces: Sequence[bytes]) -> Indices:
    return np.cumsum([0, *map(len, pieces)]).astype(np.int64)


def _spelling(tokenizer: Tokenizer, token_id: int) -> bytes:
    token = tokenizer.token_of(token_id)
    if token is None:
        return f"<{token_id}>".encode()
    byte = byte_of(token)
    return tokenizer.decode([token_id]).encode() if byte is None else bytes([byte])


def _common_prefix(first: bytes, second: bytes) -> int:
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    pair = np.frombuffer(first[:length], np.uint8) != np.frombuffer(second[:length], np.uint8)
    return int(pair.argmax())
