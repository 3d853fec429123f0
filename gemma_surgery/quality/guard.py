"""Measuring after every step of a recipe, and stopping or leaving a step out where a limit is passed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.referee import Referee
from gemma_surgery.quality.step_costs import StepCost, measure_steps
from gemma_surgery.recipes.recipe import Recipe
from gemma_surgery.surgery.plan import Plan

WHERE = "guard"
Action = Literal["stop", "skip"]


@dataclass(frozen=True)
class Limit:
    """What a recipe may cost.

    Attributes:
        kl: mean divergence from the original in nats, after any step.
    """

    kl: float

    @staticmethod
    def parse(text: str) -> Limit:
        """Read `kl=0.05`.

        Raises:
            SurgeryError: anything else.
        """
        found = re.fullmatch(r"kl=(\d+(\.\d*)?|\.\d+)(e-?\d+)?", text.strip())
        if found is None:
            raise SurgeryError(WHERE, f"need `kl=NUMBER`, got `{text}`", "for example `--guard kl=0.05`")
        return Limit(float(text.split("=")[1]))


def guarded(
    source: Checkpoint,
    recipe: Recipe,
    limit: Limit,
    referee: Referee,
    *,
    action: Action = "stop",
    folder: Path | None = None,
    threads: int | None = None,
    on_step: Callable[[StepCost], None] = lambda cost: None,
) -> tuple[Recipe, list[StepCost]]:
    """Build a recipe up step by step, measuring each that changes what the model says.

    Args:
        source: the original.
        recipe: what is wanted.
        limit: what it may cost.
        referee: knows the original.
        action: on passing the limit, `stop` with an error or `skip` the step.
        folder: where the intermediate checkpoints are made and removed again; the system's by default.
        threads: workers.
        on_step: told of every step when it is decided.

    Returns:
        The recipe of the steps that stayed, and what every step cost.

    Raises:
        SurgeryError: a limit was passed, a step warns of a published failure, or a plan cannot be made.
    """

    def keeps(cost: StepCost) -> bool:
        if cost.divergence is None or cost.divergence.kld.mean.value <= limit.kl:
            return True
        mean = cost.divergence.kld.mean
        if action == "stop":
            raise SurgeryError(
                WHERE,
                f"need a divergence of at most {limit.kl:g}, got {mean.value:.4g} +- {mean.stderr:.2g} after "
                f"step {cost.number}, `{cost.step}`; nothing was written",
                "soften or remove the step, raise the limit, or leave such steps out with "
                "`--guard-action skip`",
            )
        return False

    costs: list[StepCost] = []
    measured = measure_steps(
        source,
        recipe,
        referee,
        before=lambda plan: _heed(plan, action),
        keeps=keeps,
        folder=folder,
        threads=threads,
    )
    for cost in measured:
        costs.append(cost)
        on_step(cost)
    kept = tuple(step for step, cost in zip(recipe.steps, costs, strict=True) if cost.is_kept)
    if not kept:
        raise SurgeryError(WHERE, f"need a step within kl={limit.kl:g}, got none", "raise the limit")
    return replace(recipe, steps=kept), costs


def _heed(plan: Plan, action: Action) -> None:
    """Stop before time is spent on a failure that is known."""
    warnings = plan.steps[-1].warnings
    if warnings and action == "stop":
        raise SurgeryError(WHERE, warnings[0], "change the step, or go on without `--guard`")
