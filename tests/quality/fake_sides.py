"""Models whose logits are given, reading texts in which each token is one letter."""

from __future__ import annotations

import string
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from gemma_surgery.calibration.samples import Sample
from gemma_surgery.quality.divergence import Side
from gemma_surgery.quality.protocol import Scored
from gemma_surgery.quality.vocabulary import ModelTokens

LETTERS = string.ascii_letters


class LetterTokenizer:
    """Token `i` is letter `i`."""

    special_ids: frozenset[int] = frozenset()

    def token_of(self, token_id: int) -> str | None:
        return LETTERS[token_id] if 0 <= token_id < len(LETTERS) else None

    def id_of(self, token: str) -> int | None:
        return LETTERS.index(token) if len(token) == 1 and token in LETTERS else None

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[token_id] for token_id in ids)


@dataclass
class GivenHead:
    """Hidden states are indices of rows of `table` `[n, R]`."""

    table: np.ndarray
    most_positions: int = 0

    def logits(self, hidden: mx.array) -> mx.array:
        self.most_positions = max(self.most_positions, len(hidden))
        return mx.array(self.table)[hidden[:, 0].astype(mx.int32)]

    def log_probs(self, hidden: mx.array, tokens: mx.array) -> mx.array:
        logits = self.logits(hidden)
        chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        return chosen - mx.logsumexp(logits, axis=-1)


def given_side(logits: np.ndarray, right: np.ndarray, ids: np.ndarray | None = None) -> Side:
    """One sample of len(right) scored tokens behind a first one, with logits float32 `[n, R]`.

    Rows are ids unless these are given, int `[R]`.
    """
    rows = np.arange(logits.shape[1]) if ids is None else ids
    tokens = ModelTokens(LetterTokenizer(), rows.astype(np.int32), int(rows.max()) + 1)  # type: ignore[arg-type]
    sample = Sample(np.concatenate([[0], right]).astype(np.int32), 1)
    states = np.arange(len(right), dtype=np.float32)[:, None]
    return Side(tokens, GivenHead(logits), [Scored(sample, 1)], [states])
