"""Does it get stuck? Greedy continuations, and how many of them end in a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemma_surgery.generation.repetition import MIN_TOKENS
from gemma_surgery.generation.stream import generate

if TYPE_CHECKING:
    from gemma_surgery.calibration.samples import Sample
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

# A loop is noticed after `MIN_TOKENS` of it, so an answer needs room for a beginning and a loop.
CONTINUATION_TOKENS = 2 * MIN_TOKENS
# Of raw text, this share is given.
GIVEN_SHARE = 0.25

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Continuation:
    """One greedy answer.

    Attributes:
        text: what was generated.
        num_tokens: tokens of it.
        loop_tokens: tokens of the longest loop in it, 0 for none.
        ended: whether the model ended it itself.
    """

    text: str
    num_tokens: int
    loop_tokens: int
    ended: bool


@dataclass(frozen=True)
class Repetitions:
    """What became of a number of greedy continuations."""

    continuations: tuple[Continuation, ...] = field(repr=False)

    @property
    def rate(self) -> float:
        """Share that fell into a loop."""
        return sum(each.loop_tokens > 0 for each in self.continuations) / len(self.continuations)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest loop."""
        return max(each.loop_tokens for each in self.continuations)

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "continuations": len(self.continuations),
            "loops": sum(each.loop_tokens > 0 for each in self.continuations),
            "longest_loop_tokens": self.longest_tokens,
            "ended": sum(each.ended for each in self.continuations),
            "tokens": sum(each.num_tokens for each in self.continuations),
        }


def continue_greedily(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    max_tokens: int = CONTINUATION_TOKENS,
    advance: Advance = lambda done: None,
) -> Repetitions:
    """Let a model answer, always with its likeliest token.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        samples: at least one, without images: their prompts, or the first part of raw text.
        max_tokens: of an answer; a loop needs `MIN_TOKENS` to be noticed.
        advance: called with 1 after each answer.
    """
    done: list[Continuation] = []
    for sample in samples:
        length = sample.answer_start
        if length == 1:
            length = max(1, int(len(sample.tokens) * GIVEN_SHARE))
        answer = generate(model, tokenizer, sample.tokens[:length].tolist(), max_tokens=max_tokens)
        loop = answer.repetition
        done.append(
            Continuation(
                answer.text,
                answer.generation_tokens,
                loop.period * loop.times if loop else 0,
                answer.finish_reason == "stop",
            )
        )
        advance(1)
    return Repetitions(tuple(done))
