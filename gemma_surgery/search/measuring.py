"""How a search measures a point: make its checkpoint, compare it with the original, keep the figures."""

from __future__ import annotations

from collections.abc import Callable

from gemma_surgery.quality.referee import Referee
from gemma_surgery.recipes.recipe import make_plan
from gemma_surgery.search.journal import Journal, Measured
from gemma_surgery.search.search import Measure
from gemma_surgery.search.space import Point, Space


def measuring(
    space: Space,
    referee: Referee,
    journal: Journal,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Measure:
    """A measurement for `search` that knows what the journal knows.

    Args:
        space: makes the recipes.
        referee: knows the space's original.
        journal: asked before anything is made, and told of everything new.
        threads: workers that make a checkpoint.
        advance: called with 1 after each point.
    """

    def measure(point: Point) -> Measured:
        plan = make_plan(space.source, space.recipe(point))
        known = journal.get(plan.sha256)
        if known is None:
            mean = referee.judge_plan(plan, threads=threads).kld.mean
            known = Measured(plan.output_bytes, mean.value, mean.stderr)
            journal.add(plan.sha256, known)
        advance(1)
        return known

    return measure
