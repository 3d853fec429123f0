"""What the pass computes from the weights before it writes: ranking scores and equality checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.draft import MustBeEqual
from gemma_surgery.surgery.encoding import companion
from gemma_surgery.surgery.kernels import Bytes, add_square_sums, as_bytes, equal
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Scores
from gemma_surgery.surgery.stream import TILE_BYTES, Buffer
from gemma_surgery.surgery.tensor import SourceMatrix

# Per worker and matrix: what one call of the pool does.
SquareSums: TypeAlias = "dict[tuple[str, str], Scores]"
RunAll: TypeAlias = "Callable[[list[Callable[[], None]]], None]"


def compute_scores(plan: Plan, files: SourceFiles, run_all: RunAll) -> dict[Ranking, Scores]:
    """Scores of every ranking of the plan, each source matrix read once."""
    matrices = {
        planned.tensor.origin.name: planned.tensor.origin
        for planned in plan.tensors
        if isinstance(planned.tensor.origin, SourceMatrix)
    }
    rankings = plan.rankings
    wanted = {(name, "rows") for ranking in rankings for name in ranking.by_row}
    wanted |= {(name, "columns") for ranking in rankings for name in ranking.by_column}
    sums: SquareSums = {}

    def job(name: str, axis: str) -> Callable[[], None]:
        def run() -> None:
            sums[name, axis] = _square_sums(matrices[name], axis, plan, files)

        return run

    run_all([job(name, axis) for name, axis in sorted(wanted)])
    return {ranking: _combine(ranking, sums) for ranking in rankings}


def check_equal(requirement: MustBeEqual, plan: Plan, files: SourceFiles) -> None:
    """Raise unless the two source matrices are bit-identical."""
    stored = plan.source.tensors
    first_buffer, second_buffer = Buffer(TILE_BYTES), Buffer(TILE_BYTES)
    for role in ("weight", "scales", "biases"):
        names = [companion(name, role) for name in (requirement.first, requirement.second)]
        if names[0] not in stored:
            # Some conversions keep only scales and biases of a head: what is there has to agree.
            continue
        if names[1] not in stored or stored[names[0]].size_bytes != stored[names[1]].size_bytes:
            raise _differ(requirement, names, "their shapes differ")
        one, two = stored[names[0]], stored[names[1]]
        for start in range(0, one.size_bytes, TILE_BYTES):
            size = min(TILE_BYTES, one.size_bytes - start)
            left, right = first_buffer.at_least(size), second_buffer.at_least(size)
            files.read_into(one.file, one.start + start, left)
            files.read_into(two.file, two.start + start, right)
            if not equal(left, right):
                raise _differ(requirement, names, f"they differ within bytes {start}..{start + size}")


def _differ(requirement: MustBeEqual, names: list[str], how: str) -> SurgeryError:
    return SurgeryError(
        requirement.step,
        f"need `{names[0]}` to be bit-identical to `{names[1]}`, but {how}",
        f"leave the step `{requirement.step}` out: this head carries values of its own",
    )


def _square_sums(matrix: SourceMatrix, axis: str, plan: Plan, files: SourceFiles) -> Scores:
    parts = matrix.components
    tile = max(1, TILE_BYTES // max(part.row_bytes for part in parts))
    buffers = [Buffer(TILE_BYTES) for _ in parts]
    sums = np.zeros(matrix.rows if axis == "rows" else matrix.columns, np.float64)
    for first in range(0, matrix.rows, tile):
        count = min(tile, matrix.rows - first)
        data: list[Bytes] = []
        for part, buffer in zip(parts, buffers, strict=True):
            stored = plan.source.tensors[part.name]
            view = buffer.at_least(count * part.row_bytes)
            files.read_into(stored.file, stored.start + first * part.row_bytes, view)
            data.append(as_bytes(view))
        out = sums[first : first + count] if axis == "rows" else sums
        add_square_sums(data, matrix.encoding, (count, matrix.columns), axis, out)
    return sums


def _combine(ranking: Ranking, sums: SquareSums) -> Scores:
    squares = [sums[name, "rows"] for name in ranking.by_row]
    squares += [sums[name, "columns"] for name in ranking.by_column]
    if ranking.entries is not None:
        # Running sums add in one order everywhere; NumPy's plain sum promises none.
        squares = [one.reshape(ranking.entries, -1).cumsum(axis=1)[:, -1] for one in squares]
    scores = np.ones_like(squares[0])
    for one in squares:
        scores = scores * np.sqrt(one)
    return scores * np.frombuffer(ranking.factor, "<f8") if ranking.factor else scores
