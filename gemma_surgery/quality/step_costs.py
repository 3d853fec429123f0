"""What a recipe costs step by step: each checkpoint is made, compared with the original and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_surgery.checkpoint.model_folder import MANIFEST_NAME, Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.referee import WHERE, Referee
from gemma_surgery.quality.results import Divergence, main_figures
from gemma_surgery.recipes.recipe import Recipe, make_plan
from gemma_surgery.surgery.manifest import read_manifest
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.verification import other_source, recorded_recipe


@dataclass(frozen=True)
class StepCost:
    """What a recipe has cost up to and with a step.

    Attributes:
        step: its name.
        number: its place in the recipe, from 1.
        size_bytes: of the tensors afterwards.
        divergence: from the original; None where the step changes no answer and was not measured.
        is_kept: whether later steps come on top of it, and it is part of the result.
    """

    step: str
    number: int
    size_bytes: int
    divergence: Divergence | None = None
    is_kept: bool = True

    def to_json(self) -> dict[str, object]:
        """For `--json` and the report, under the keys that an evaluation has for the whole."""
        found = self.divergence
        return {
            "step": self.step,
            "number": self.number,
            **main_figures(found),
            "positions": found.positions if found else None,
            "kld": found.kld.to_json() if found else None,
            "size_bytes": self.size_bytes,
            "is_kept": self.is_kept,
        }


def measure_steps(
    source: Checkpoint,
    recipe: Recipe,
    referee: Referee,
    *,
    before: Callable[[Plan], None] = lambda plan: None,
    keeps: Callable[[StepCost], bool] = lambda cost: True,
    folder: Path | None = None,
    threads: int | None = None,
) -> Iterator[StepCost]:
    """Build a recipe up step by step, measuring each that changes what the model says.

    Args:
        source: the original.
        recipe: what is built up.
        referee: knows the original.
        before: called with the plan that ends with a step before that is measured.
        keeps: whether a step stays once its cost is known; later ones do not come on top of others.
        folder: where the intermediate checkpoints are made and removed again; the system's by default.
        threads: workers.

    Yields:
        One for each step, in the order of the recipe.

    Raises:
        SurgeryError: a plan cannot be made, or its checkpoint not be run.
    """
    kept: tuple[int, ...] = ()
    for index, (name, step) in enumerate(recipe.steps):
        trial = (*kept, index)
        plan = make_plan(source, replace(recipe, steps=tuple(recipe.steps[each] for each in trial)))
        divergence = None
        if step.changes_answers:
            before(plan)
            divergence = referee.judge_plan(plan, f"after {name}", threads=threads, folder=folder)
        cost = StepCost(name, index + 1, plan.output_bytes, divergence)
        if keeps(cost):
            kept = trial
        else:
            cost = replace(cost, is_kept=False)
        yield cost


def recipe_behind(output: Checkpoint, source: Checkpoint, profile: Path | None = None) -> Recipe:
    """The recipe that made an output, if it still makes the same of this source.

    Args:
        output: written by `compress`.
        source: the checkpoint that it was made of.
        profile: where the profile lies that the recipe used, default: where the recipe says, else beside
            the output.

    Raises:
        SurgeryError: the output has no manifest or another source, or a file that its recipe names is
            missing or changed.
    """
    name = output.path.name
    if not (output.path / MANIFEST_NAME).is_file():
        raise SurgeryError(
            WHERE,
            f"need a `{MANIFEST_NAME}` in `{output.path}` for the cost of each step, got none",
            "give a folder that `gemma-surgery compress` wrote, or leave `--steps` out",
        )
    manifest = read_manifest(output)
    problem = other_source(manifest, source)
    if problem is not None:
        hint = "give the checkpoint as `--reference` that it was made of"
        raise SurgeryError(WHERE, f"`{name}` is {problem}", hint)
    recipe, absent = recorded_recipe(output, manifest, profile)
    if absent:
        raise SurgeryError(
            WHERE,
            f"need the profile `{absent[0]}` that made `{name}`, got none",
            "say where it lies with `--profile`",
        )
    if make_plan(source, recipe).sha256 != manifest.get("plan_sha256"):
        raise SurgeryError(
            WHERE,
            f"need the files that the recipe of `{name}` names as they were, got another plan from them",
            "compress again, or leave `--steps` out",
        )
    return recipe
