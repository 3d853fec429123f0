"""Changes to the logits that depend on the tokens so far.

A processor is any callable `processor(tokens, logits) -> logits`: `tokens` are the original ids of everything
so far, the prompt included, and `logits` `[B, R]` are over the rows of the model's head. Those here translate
ids to rows themselves, and can be made for another model by `for_model`, which is how a draft model gets its
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.models import Gemma3Model

LogitsProcessor = Callable[[list[int], mx.array], mx.array]

DEFAULT_CONTEXT_SIZE = 20


class RepetitionPenalty:
    """Makes tokens that came lately less likely (Keskar et al. 2019, CTRL, section 4.1, for either sign).

    Positive logits are divided by the penalty, negative ones multiplied by it, once per token however often
    it came.

    Args:
        model: whose logits are processed.
        penalty: above 0; 1 changes nothing, below 1 encourages repetition.
        context_size: how many of the last tokens count; None for all.

    Raises:
        SurgeryError: a value outside its range.
    """

    def __init__(
        self, model: Gemma3Model, penalty: float, context_size: int | None = DEFAULT_CONTEXT_SIZE
    ) -> None:
        if not 0 < penalty < math.inf:
            raise SurgeryError(
                "generate", f"need a repetition penalty above 0, got {penalty!r}", "1 changes nothing"
            )
        if context_size is not None and context_size < 1:
            raise SurgeryError(
                "generate", f"need a repetition context of 1 token or more, got {context_size!r}"
            )
        self.model, self.penalty, self.context_size = model, penalty, context_size

    def for_model(self, model: Gemma3Model) -> RepetitionPenalty:
        """The same for another model."""
        return RepetitionPenalty(model, self.penalty, self.context_size)

    def __call__(self, tokens: list[int], logits: mx.array) -> mx.array:
        """Logits `[B, R]` with the last tokens penalised."""
        context = tokens if self.context_size is None else tokens[-self.context_size :]
        # A draft model's table may be shorter than the main model's.
        known = {token for token in context if token < self.model.config.text.vocab_size}
        if not known:
            return logits
        ids = mx.array(sorted(known), mx.int32)
        # A pruned id falls on row 0, which holds minus infinity and keeps it.
        rows = mx.broadcast_to(self.model.rows.to_rows(ids), (logits.shape[0], ids.size))
        chosen = mx.take_along_axis(logits, rows, axis=-1)
        penalised = mx.where(chosen > 0, chosen / self.penalty, chosen * self.penalty)
        return mx.put_along_axis(logits, rows, penalised, axis=-1)


class LogitBias:
    """Adds a number to the logits of some tokens.

    Args:
        model: whose logits are processed.
        bias: token id -> what to add; ids that the model lacks are ignored.
    """

    def __init__(self, model: Gemma3Model, bias: Mapping[int, float]) -> None:
        if any(math.isnan(value) or value == math.inf for value in bias.values()) or any(i < 0 for i in bias):
            raise SurgeryError("generate", "need token ids of 0 or more with finite biases or minus infinity")
        self.model, self.bias = model, dict(bias)
        self._added: mx.array | None = None

    def for_model(self, model: Gemma3Model) -> LogitBias:
        """The same for another model."""
        return LogitBias(model, self.bias)

    def __call__(self, tokens: list[int], logits: mx.array) -> mx.array:
        """Logits `[B, R]` with the biases added."""
        if self._added is None:
            self._added = self._vector(logits.shape[-1])
        return logits + self._added

    def _vector(self, size: int) -> mx.array:
        ids = [index for index in self.bias if index < self.model.config.text.vocab_size]
        values = [self.bias[index] for index in ids]
        added = mx.zeros((size,), mx.float32)
        if not ids:
            return added
        rows = self.model.rows.to_rows(mx.array(ids, mx.int32))
        return added.at[rows].add(mx.array(values, mx.float32))


def make_logits_processors(
    model: Gemma3Model,
    logit_bias: Mapping[int, float] | None = None,
    repetition_penalty: float | None = None,
    repetition_context_size: int | None = DEFAULT_CONTEXT_SIZE,
) -> list[LogitsProcessor]:
    """The processors that are asked for, bias first, as mlx-lm orders them.

    Args:
        model: whose logits are processed.
        logit_bias: see `LogitBias`.
        repetition_penalty: see `RepetitionPenalty`; None or 1 leaves it out.
        repetition_context_size: how many of the last tokens it looks at; None for all.

    Raises:
        SurgeryError: a value outside its range.
    """
    processors: list[LogitsProcessor] = []
    if logit_bias:
        processors.append(LogitBias(model, logit_bias))
    if repetition_penalty is not None and repetition_penalty != 1:
        processors.append(RepetitionPenalty(model, repetition_penalty, repetition_context_size))
    return processors


def processors_for(model: Gemma3Model, processors: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
    """Those processors that can be made for another model, made for it; the others are left out."""
    return [processor.for_model(model) for processor in processors if hasattr(processor, "for_model")]
