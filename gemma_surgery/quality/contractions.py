"""Contractions: "I'm" and never "I's", which is how a vocabulary cut too far shows first.

Whole strings are scored behind the begin-of-sequence token, so that it does not matter how a tokenizer splits
them. What the strings have in common cancels out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.samples import Sample
from gemma_surgery.quality.protocol import Scored
from gemma_surgery.quality.statistics import finite

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer


@dataclass(frozen=True)
class Context:
    """A text that goes on with the contraction `right`, and not with any of `wrong`."""

    before: str
    right: str
    wrong: tuple[str, ...]


_OF_BE = {
    "I": ("I'm", ("I's", "I're")),
    "you": ("you're", ("you's", "you'm")),
    "we": ("we're", ("we's", "we'm")),
    "they": ("they're", ("they's", "they'm")),
    "he": ("he's", ("he'm", "he're")),
    "she": ("she's", ("she'm", "she're")),
    "it": ("it's", ("it'm", "it're")),
}
_BEFORE = ("Anna says ", "Tom thinks ", "Maria knows ")
_DO, _DOES = ("don't", ("doesn't", "isn't")), ("doesn't", ("don't", "aren't"))
_NEGATIONS = (
    Context("Anna says you're tired, but I ", *_DO),
    Context("Tom thinks I'm ready, but you ", *_DO),
    Context("Ben says he's late, but we ", *_DO),
    Context("Emma knows it's here, but they ", *_DO),
    Context("Leo says we're happy, but he ", *_DOES),
    Context("Clara thinks they're right, but she ", *_DOES),
    Context("David says she's hungry, but it ", *_DOES),
)

CONTEXTS = (
    *(Context(before, right, wrong) for before in _BEFORE for right, wrong in _OF_BE.values()),
    *_NEGATIONS,
)

_APOSTROPHE = "['\u2019]"
_IMPOSSIBLE = re.compile(
    rf"\b(?:I{_APOSTROPHE}(?:s|re)"
    rf"|(?:[Yy]ou|[Ww]e|[Tt]hey){_APOSTROPHE}(?:s|m)"
    rf"|(?:[Hh]e|[Ss]he|[Ii]t){_APOSTROPHE}(?:m|re))\b"
)


@dataclass(frozen=True)
class Contractions:
    """How sure a model is of its contractions.

    Attributes:
        margins: per context, the log-probability of the right form minus that of the likeliest wrong one.
        odds: per context, the same against all wrong ones together.
    """

    margins: tuple[float, ...]
    odds: tuple[float, ...]

    @property
    def share(self) -> float:
        """Share of contexts in which the right form is likelier than each wrong one."""
        return sum(margin > 0 for margin in self.margins) / len(self.margins)

    @property
    def log_odds(self) -> float:
        """Mean over contexts of the right form's log-odds, in nats."""
        return sum(self.odds) / len(self.odds)

    def wrong(self) -> list[str]:
        """The contexts in which a wrong form is likelier, with their right form."""
        return [
            context.before + context.right
            for context, margin in zip(CONTEXTS, self.margins, strict=True)
            if not margin > 0
        ]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "contexts": len(self.margins),
            "share": self.share,
            "log_odds": finite(self.log_odds),
            "least_margin": finite(min(self.margins)),
            "wrong": self.wrong(),
        }


def contraction_samples(tokenizer: Tokenizer, bos: int) -> list[Scored]:
    """Every context with every form, in the order that `score_contractions` takes their scores.

    Args:
        tokenizer: of the model.
        bos: id of the begin-of-sequence token.
    """
    texts = [context.before + form for context in CONTEXTS for form in (context.right, *context.wrong)]
    return [
        Scored(Sample(np.array([bos, *tokenizer.encode(text, special_tokens=False)], np.int32), 1), 1)
        for text in texts
    ]


def score_contractions(logprobs: Sequence[npt.NDArray[np.float64]]) -> Contractions:
    """Compare the forms.

    Args:
        logprobs: of the tokens of every sample of `contraction_samples`.
    """
    totals = iter([float(each.sum()) for each in logprobs])
    margins: list[float] = []
    odds: list[float] = []
    for context in CONTEXTS:
        right = next(totals)
        wrong = np.array([next(totals) for _ in context.wrong])
        margins.append(_difference(right, float(wrong.max())))
        odds.append(_difference(right, float(np.logaddexp.reduce(wrong))))
    return Contractions(tuple(margins), tuple(odds))


def impossible_forms(texts: Iterable[str]) -> list[str]:
    """Contractions that no English has, such as `I's` or `they's`, as often as they occur."""
    return [match[0] for text in texts for match in _IMPOSSIBLE.finditer(text)]


def _difference(first: float, second: float) -> float:
    # Minus infinity is a string that the vocabulary cannot write: two of them are equally impossible.
    return 0.0 if first == second else first - second
