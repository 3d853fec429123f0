"""What `eval` reports, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemma_surgery.quality.statistics import Estimate, Perplexities, Spread, TokenProbabilities, finite

if TYPE_CHECKING:
    from gemma_surgery.quality.contractions import Contractions
    from gemma_surgery.quality.images import AgreementReport, SceneReport
    from gemma_surgery.quality.protocol import Protocol
    from gemma_surgery.quality.repetition import Repetitions
    from gemma_surgery.quality.step_costs import StepCost
    from gemma_surgery.quality.tasks import TaskReport


@dataclass(frozen=True)
class VocabularyReport:
    """How two vocabularies fit together.

    Attributes:
        respelled: tokens of the reference that the candidate writes in pieces.
        without_piece: tokens of the reference that it cannot write: control tokens and unused ones.
        lost_mass: mean probability that the reference gives those.
        worst_lost_mass: the largest.
        unmatched_reference: scored tokens of the reference that begin where the candidate has no boundary.
        unmatched_candidate: the other way round.
        impossible: places where the candidate has no token for the text: left out of its perplexity.
    """

    respelled: int
    without_piece: int
    lost_mass: float
    worst_lost_mass: float
    unmatched_reference: int
    unmatched_candidate: int
    impossible: int

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return dict(vars(self))


@dataclass(frozen=True)
class Divergence:
    """A candidate against its reference, over all places where their tokens meet.

    Attributes:
        positions: places that were compared.
        kld: nats, `sum p (ln p - ln q)` with p the reference's.
        is_lower_bound: whether the reference came from a cache, which lumps its unlikely tokens together.
        same_top: share of places with the same likeliest token.
        perplexities: of the text from place to place: per token where both split it alike.
        probabilities: of the right continuation.
        vocabulary: how the two vocabularies fit.
    """

    positions: int
    kld: Spread
    is_lower_bound: bool
    same_top: Estimate
    perplexities: Perplexities
    probabilities: TokenProbabilities
    vocabulary: VocabularyReport


def main_figures(found: Divergence | None) -> dict[str, object]:
    """The figures that a divergence is quoted by, for `--json`; null where it was not measured."""
    return {
        "mean_kld": finite(found.kld.mean.value) if found else None,
        "kld_stderr": finite(found.kld.mean.stderr) if found else None,
        "kld_99": finite(found.kld.percentiles[99.0]) if found else None,
        "kld_is_lower_bound": found.is_lower_bound if found else None,
        "same_top": finite(found.same_top.value) if found else None,
        "same_top_stderr": finite(found.same_top.stderr) if found else None,
    }


@dataclass(frozen=True)
class Evaluation:
    """What was measured; parts that were left out are None.

    Attributes:
        model: folder of the checkpoint.
        reference: folder of the one that it was compared with.
        protocol: how distributions were measured.
        positions: places that were scored.
        perplexity: of the model per token of its own; None with a reference, whose places decide then.
        divergence: None without a reference.
        steps: what each step of the recipe costs that made the model of the reference.
        impossible_forms: contractions such as `I's` in the greedy continuations.
        seconds: by phase.
        notes: what could not be measured, and why.
    """

    model: str
    reference: str | None
    protocol: Protocol | None = None
    positions: int = 0
    perplexity: Estimate | None = None
    divergence: Divergence | None = None
    steps: tuple[StepCost, ...] | None = None
    contractions: Contractions | None = None
    contractions_reference: Contractions | None = None
    repetition: Repetitions | None = None
    impossible_forms: tuple[str, ...] | None = None
    tasks: TaskReport | None = None
    images: SceneReport | AgreementReport | None = None
    images_reference: SceneReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Everything, for `--json`: the main figures by name, then each part whole. Null: not measured."""
        found = self.divergence
        ppl = found.perplexities.candidate if found else self.perplexity
        return {
            "model": self.model,
            "reference": self.reference,
            **main_figures(found),
            "ppl": finite(ppl.value) if ppl else None,
            "ppl_stderr": finite(ppl.stderr) if ppl else None,
            "ppl_reference": finite(found.perplexities.reference.value) if found else None,
            "repetition_rate": self.repetition.rate if self.repetition else None,
            "tasks": self.tasks.to_json() if self.tasks else None,
            "images": self.images.to_json() if self.images else None,
            "images_reference": self.images_reference.to_json() if self.images_reference else None,
            "positions": self.positions,
            "kld": found.kld.to_json() if found else None,
            "perplexity": found.perplexities.to_json() if found else None,
            "token_probabilities": found.probabilities.to_json() if found else None,
            "vocabulary": found.vocabulary.to_json() if found else None,
            "steps": None if self.steps is None else [each.to_json() for each in self.steps],
            "contractions": self.contractions.to_json() if self.contractions else None,
            "contractions_reference": (
                self.contractions_reference.to_json() if self.contractions_reference else None
            ),
            "repetition": self.repetition.to_json() if self.repetition else None,
            "impossible_forms": None if self.impossible_forms is None else list(self.impossible_forms),
            "protocol": self.protocol.to_json() if self.protocol else None,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "notes": list(self.notes),
        }
