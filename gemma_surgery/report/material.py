"""All that a report is made of; what was not given is empty."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_surgery.report.activity import Activity
from gemma_surgery.report.answers import Answer
from gemma_surgery.report.divergences import StepCosts
from gemma_surgery.report.measurements import Evaluation, Search, Speed
from gemma_surgery.report.outcome import Outcome


@dataclass(frozen=True)
class Material:
    """What was done and what was measured.

    Attributes:
        outcome: of the run.
        evaluations: in the order in which they were given.
        step_costs: what each step of a recipe costs, of every file that says.
        activity: of a profile.
        search: points and sensitivities.
        speeds: rows of `bench`.
        answers: of both models to prompts.
        image_answers: of both models to images.
        scripts: tokens of the output's tokenizer by script.
        scripts_before: those of the original's, where it is at hand.
        reference: name of the checkpoint that answered besides.
        reference_is_source: whether that is the one that the output was made of.
        base_model: its repository id, where it has one.
        license: what the original's model card says.
        multimodal: whether the output takes images.
    """

    outcome: Outcome
    evaluations: tuple[Evaluation, ...] = ()
    step_costs: tuple[StepCosts, ...] = ()
    activity: Activity | None = None
    search: Search = field(default_factory=Search)
    speeds: tuple[Speed, ...] = ()
    answers: tuple[Answer, ...] = ()
    image_answers: tuple[Answer, ...] = ()
    scripts: dict[str, int] = field(default_factory=dict)
    scripts_before: dict[str, int] = field(default_factory=dict)
    reference: str = ""
    reference_is_source: bool = False
    base_model: str = ""
    license: str = ""
    multimodal: bool = False

    @property
    def final(self) -> Evaluation | None:
        """The evaluation of the output itself: the one named like its folder."""
        return next((each for each in self.evaluations if each.label == self.outcome.name), None)

    @property
    def own_step_costs(self) -> tuple[StepCosts, ...]:
        """Those of the recipe that made the output."""
        name, plan = self.outcome.name, self.outcome.plan_sha256
        return tuple(
            each
            for each in self.step_costs
            if (each.plan_sha256 == plan if each.plan_sha256 else each.label == name)
        )
