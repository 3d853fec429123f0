"""Comparing distributions over two vocabularies: what a token of one model is in the tokens of another.

Letters: V ids of the reference's tokenizer, R rows of a head, n positions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.generation.detokenizer import byte_of

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models.gemma3.vocabulary import TokenRows

Ids = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]

NO_PIECE = -1
_UNUSED = re.compile(r"<unused\d+>")


@dataclass(frozen=True, eq=False)
class ModelTokens:
    """The tokens of one model: its tokenizer, and which of the ids its head has a row for.

    Attributes:
        tokenizer: of the checkpoint.
        id_of_row: int32 `[R]`, -1 for a row of no token.
        size: ids V.
    """

    tokenizer: Tokenizer
    id_of_row: Ids
    size: int

    @staticmethod
    def of(tokenizer: Tokenizer, rows: TokenRows, size: int) -> ModelTokens:
        """The tokens of a model with these rows and ids 0 to `size - 1`."""
        ids = np.array(rows.to_ids(mx.arange(rows.size, dtype=mx.int32)), np.int32)
        if rows.kept is not None:
            ids[~np.asarray(rows.kept)] = -1
        return ModelTokens(tokenizer, ids, size)

    @cached_property
    def row_of_id(self) -> Ids:
        """int32 `[V]`: the row of each id, -1 where it was pruned."""
        rows = np.full(max(self.size, int(self.id_of_row.max(initial=-1)) + 1), -1, np.int32)
        has_id = np.flatnonzero(self.id_of_row >= 0)
        rows[self.id_of_row[has_id]] = has_id
        return rows

    def rows_of(self, ids: npt.NDArray[np.integer]) -> Ids:
        """Rows of ids, -1 for those without one."""
        inside = (ids >= 0) & (ids < self.row_of_id.size)
        return np.where(inside, self.row_of_id[np.where(inside, ids, 0)], -1).astype(np.int32)


def first_pieces(reference: ModelTokens, candidate: ModelTokens) -> Ids:
    """How the candidate begins to write each token of the reference.

    Args:
        reference: whose ids are mapped.
        candidate: whose ids they are mapped to.

    Returns:
        int32 `[V]`: the same token where the candidate has it; else the first token of its text, split by the
        candidate's tokenizer; `NO_PIECE` for control tokens, bytes and `<unusedN>` that it lacks.
    """
    pieces = np.full(reference.row_of_id.size, NO_PIECE, np.int32)
    source, target = reference.tokenizer, candidate.tokenizer
    special = source.special_ids
    known = candidate.row_of_id >= 0
    for token_id in np.flatnonzero(reference.row_of_id >= 0).tolist():
        token = source.token_of(token_id)
        if token is None:
            # Padding rows have no token on either side.
            pieces[token_id] = token_id if token_id < known.size and known[token_id] else NO_PIECE
            continue
        same = target.id_of(token)
        if same is not None and same < known.size and known[same]:
            pieces[token_id] = same
        elif token_id not in special and byte_of(token) is None and not _UNUSED.fullmatch(token):
            first = target.encode(source.decode([token_id]), special_tokens=False)[:1]
            if first and first[0] < known.size and known[first[0]]:
                pieces[token_id] = first[0]
    return pieces


class Credit:
    """Carries the reference's probabilities over to the rows of the candidate.

    Args:
        reference: whose probabilities.
        candidate: whose rows.
        pieces: from `first_pieces`.

    Attributes:
        num_respelled: tokens of the reference that the candidate writes in pieces.
        num_without_piece: those that it cannot write.
        is_identity: whether both heads have the same tokens in the same rows, so that nothing is carried.
    """

    def __init__(self, reference: ModelTokens, candidate: ModelTokens, pieces: Ids) -> None:
        ids = reference.id_of_row
        self.pieces = pieces
        targets = np.where(ids >= 0, pieces[np.maximum(ids, 0)], NO_PIECE)
        sources, counts = np.unique(targets[targets != NO_PIECE], return_counts=True)
        self.num_respelled = int(counts.sum() - len(sources))
        self.num_without_piece = int((targets[ids >= 0] == NO_PIECE).sum())
        rows = candidate.rows_of(targets)
        self.num_rows = candidate.id_of_row.size
        has_token = ids >= 0
        self.is_identity = rows.size == self.num_rows and bool(
            (rows == np.arange(rows.size))[has_token].all()
        )
        carried = np.flatnonzero(rows >= 0)
        self._lost = np.flatnonzero(rows < 0)
        self._order = carried[np.argsort(rows[carried], kind="stable")]
        self._rows, self._starts, counts = np.unique(rows[self._order], return_index=True, return_counts=True)
        # Rows that stand for one token of the reference and nothing else.
        self._is_single = np.zeros(self.num_rows, bool)
        self._is_single[self._rows[counts == 1]] = True

    def carry(self, probabilities: Numbers) -> tuple[Numbers, Numbers]:
        """Sum up what becomes the same piece.

        Args:
            probabilities: float64 `[n, R]` of the reference.

        Returns:
            float64 `[n, R']` over the candidate's rows, summing to 1 again, and `[n]` what no piece got.
        """
        lost = probabilities[:, self._lost].sum(axis=1)
        carried = np.zeros((len(probabilities), self.num_rows))
        if self._rows.size:
            carried[:, self._rows] = np.add.reduceat(probabilities[:, self._order], self._starts, axis=1)
        kept = 1.0 - lost[:, None]
        return np.divide(carried, kept, out=carried, where=kept > 0), lost

    def is_single(self, rows: Ids) -> npt.NDArray[np.bool_]:
        """Whether each of these rows of the candidate gets the probability of one token only."""
        return (rows >= 0) & self._is_single[np.maximum(rows, 0)]
