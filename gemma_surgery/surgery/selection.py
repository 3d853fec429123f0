"""Which rows or columns of a source matrix remain, as one composed index list."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.surgery.ranking import Ranking

Indices: TypeAlias = "npt.NDArray[np.int32]"
Scores: TypeAlias = "npt.NDArray[np.float64]"
ScoreOf: TypeAlias = "Callable[[Ranking], Scores]"

# A selection is spelled out in the plan's JSON up to this many runs, and hashed beyond.
MAX_RUNS_IN_JSON = 32


@dataclass(frozen=True)
class TopRanked:
    """Keep the `count` best of the current entries by `ranking`, whole blocks of `block` at a time.

    A ranking of fewer scores than entries ranks equal runs of entries.
    """

    count: int
    ranking: Ranking
    block: int = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """A list of indices into `source_count` entries; -1 stands for an entry of zeros.

    Composing never nests: index lists collapse at once, and only choices that need the weights
    (`TopRanked`) stay symbolic until the pass resolves them.
    """

    source_count: int
    parts: tuple[Indices | TopRanked, ...] = field(default=())

    @property
    def count(self) -> int:
        """Entries that remain."""
        if not self.parts:
            return self.source_count
        last = self.parts[-1]
        return last.count if isinstance(last, TopRanked) else len(last)

    @property
    def is_whole(self) -> bool:
        """Whether everything remains, in place."""
        return not self.parts

    @property
    def rankings(self) -> list[Ranking]:
        """What has to be computed from weights before the indices are known."""
        return [part.ranking for part in self.parts if isinstance(part, TopRanked)]

    def take(self, indices: Sequence[int] | Indices) -> Selection:
        """Keep `indices` of the current entries (-1 adds a zero entry)."""
        chosen = np.asarray(indices, dtype=np.int32)
        if len(chosen) and (chosen.min() < -1 or chosen.max() >= self.count):
            raise IndexError(f"indices {chosen.min()}..{chosen.max()} outside of {self.count} entries")
        if len(chosen) == self.count and np.array_equal(chosen, np.arange(self.count, dtype=np.int32)):
            return self
        if self.parts and not isinstance(self.parts[-1], TopRanked):
            last = self.parts[-1]
            return Selection(self.source_count, (*self.parts[:-1], _compose(last, chosen)))
        return Selection(self.source_count, (*self.parts, chosen))

    def take_top(self, part: TopRanked) -> Selection:
        """Keep the best entries by a score that is computed from the weights later."""
        return Selection(self.source_count, (*self.parts, part))

    def pad_to(self, count: int) -> Selection:
        """Append zero entries up to `count`."""
        current = np.arange(self.count, dtype=np.int32)
        return self.take(np.concatenate([current, np.full(count - self.count, -1, np.int32)]))

    def resolve(self, score_of: ScoreOf) -> Indices | None:
        """The final indices into the source, or None when everything remains in place."""
        if not self.parts:
            return None
        indices = np.arange(self.source_count, dtype=np.int32)
        for part in self.parts:
            if isinstance(part, TopRanked):
                indices = _compose(indices, _top(score_of(part.ranking), indices, part, self.source_count))
            else:
                indices = _compose(indices, part)
        return indices

    def whole_blocks(self, block: int) -> bool:
        """Whether the selection moves only aligned blocks of `block` entries, so packed groups stay whole."""
        for part in self.parts:
            if isinstance(part, TopRanked):
                if part.block % block:
                    return False
            elif not _in_blocks(part, block):
                return False
        return self.source_count % block == 0

    def to_json(self) -> Json:
        """What remains, for the plan: ``"all"``, runs ``[start, stop)``, or a count with a hash."""
        if not self.parts:
            return "all"
        return [_part_json(part) for part in self.parts]


def _compose(outer: Indices, chosen: Indices) -> Indices:
    if not len(outer):
        return np.full(len(chosen), -1, np.int32)
    return np.where(chosen >= 0, outer[np.maximum(chosen, 0)], np.int32(-1)).astype(np.int32)


def _top(scores: Scores, indices: Indices, part: TopRanked, source_count: int) -> Indices:
    run = source_count // len(scores)
    current = np.where(indices >= 0, scores[np.maximum(indices, 0) // run], -np.inf)
    blocks = current.reshape(-1, part.block).sum(axis=1)
    # A stable sort of the negated scores keeps the earlier of two equals: the same choice everywhere.
    best = np.sort(np.argsort(-blocks, kind="stable")[: part.count // part.block])
    return (best[:, None] * part.block + np.arange(part.block)).reshape(-1).astype(np.int32)


def _in_blocks(indices: Indices, block: int) -> bool:
    if len(indices) % block:
        return False
    grid = indices.reshape(-1, block)
    first = grid[:, :1]
    zero = (grid == -1).all(axis=1)
    straight = (grid == first + np.arange(block, dtype=np.int32)).all(axis=1) & (first[:, 0] % block == 0)
    return bool((zero | straight).all())


def _runs(indices: Indices) -> list[tuple[int, int]]:
    """Maximal runs: (start, stop) of consecutive indices, or (-1, count) for zeros."""
    if not len(indices):
        return []
    zero = indices < 0
    breaks = np.flatnonzero((np.diff(indices) != np.where(zero[:-1], 0, 1)) | (zero[1:] != zero[:-1])) + 1
    runs = []
    for piece in np.split(indices, breaks):
        runs.append((-1, len(piece)) if piece[0] < 0 else (int(piece[0]), int(piece[-1]) + 1))
    return runs


def _part_json(part: Indices | TopRanked) -> Json:
    if isinstance(part, TopRanked):
        return {"top": part.count, "block": part.block, "by": part.ranking.to_json()}
    breaks = int(np.count_nonzero(np.diff(part) != 1)) if len(part) else 0
    if breaks <= MAX_RUNS_IN_JSON * 2 and len(runs := _runs(part)) <= MAX_RUNS_IN_JSON:
        return {"count": len(part), "runs": [list(run) for run in runs]}
    digest = hashlib.sha256(part.astype("<i4").tobytes()).hexdigest()
    return {"count": len(part), "sha256": digest}
