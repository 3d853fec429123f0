"""Measuring after every step of a recipe, and stopping or leaving a step out where a limit is passed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.referee import Referee
from gemma_surgery.recipes.recipe import Recipe, make_plan
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


@dataclass(frozen=True)
class StepCost:
    """What the recipe has cost up to and with a step.

    Attributes:
        step: its name.
        number: its place in the recipe, from 1.
        kl: mean divergence in nats; None where the step changes no answer and was not measured.
        stderr: standard error of it.
        is_kept: whether the step is part of the result.
        size_bytes: of the tensors afterwards.
    """

    step: str
    number: int
    kl: float | None
    stderr: float | None
    is_kept: bool
    size_bytes: int

    def to_json(self) -> dict[str, Json]:
        """For `--json` and the report."""
        return dict(vars(self))


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
        The recipe of the steps that stayed, and what each step cost.

    Raises:
        SurgeryError: a limit was passed, a step warns of a published failure, or a plan cannot be made.
    """
    kept = replace(recipe, steps=())
    costs: list[StepCost] = []
    for number, (name, step) in enumerate(recipe.steps, 1):
        trial = replace(recipe, steps=(*kept.steps, (name, step)))
        plan = make_plan(source, trial)
        if step.changes_answers:
            _heed(plan, action)
            mean = referee.judge_plan(plan, f"after {name}", threads=threads, folder=folder).kld.mean
            kl, stderr = mean.value, mean.stderr
        else:
            kl, stderr = None, None
        passed = kl is not None and not kl <= limit.kl
        if passed and action == "stop":
            raise SurgeryError(
                WHERE,
                f"need a divergence of at most {limit.kl:g}, got {kl:.4g} +- {stderr:.2g} after "
                f"step {number}, `{name}`; nothing was written",
                "soften or remove the step, raise the limit, or leave such steps out with "
                "`--guard-action skip`",
            )
        costs.append(StepCost(name, number, kl, stderr, not passed, plan.output_bytes))
        kept = kept if passed else trial
        on_step(costs[-1])
    if not kept.steps:
        raise SurgeryError(WHERE, f"need a step within kl={limit.kl:g}, got none", "raise the limit")
    return kept, costs


def _heed(plan: Plan, action: Action) -> None:
    """Stop before time is spent on a failure that is known."""
    warnings = plan.steps[-1].warnings
    if warnings and action == "stop":
        raise SurgeryError(WHERE, warnings[0], "change the step, or go on without `--guard`")
