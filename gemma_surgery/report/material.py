"""All that a report is made of; what was not given is empty."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_surgery.report.activity import Activity
from gemma_surgery.report.answers import Answer
from gemma_surgery.report.measurements import Evaluation, Search, Speed
from gemma_surgery.report.outcome import Outcome


@dataclass(frozen=True)
class Material:
    """What was done and what was measured.

    Attributes:
        outcome: of the run.
        evaluations: in the order in which they were given.
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
        """The evaluation of the output itself: named like its folder, or after the recipe's last step."""
        steps = self.outcome.step_names
        for each in self.evaluations:
            if (each.step and steps and each.label == steps[-1]) or (
                not each.step and each.label == self.outcome.name
            ):
                return each
        return None
