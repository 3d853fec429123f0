"""Choosing tokens from logits: what plain and speculative generation have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from gemma_surgery.generation.samplers import Sampler

if TYPE_CHECKING:
    from gemma_surgery.generation.logits_processors import LogitsProcessor
    from gemma_surgery.generation.samplers import SamplerFunction
    from gemma_surgery.models import Gemma3Model


class Drawn(NamedTuple):
    """One generated token.

    Attributes:
        token: original id.
        logprob: its natural log-probability after the processors, before the sampler's filters and
            temperature.
        from_draft: whether a draft model proposed it.
    """

    token: int
    logprob: float
    from_draft: bool = False


def number(scalar: mx.array) -> float:
    """The value of an array of one element; waits for it."""
    return cast(float, scalar.item())


def numbers(vector: mx.array) -> list[Any]:
    """The values of a one-dimensional array; waits for them."""
    return cast(list[Any], vector.tolist())


class Chooser:
    """Turns a model's logits into log-probabilities and tokens.

    The image token is never chosen: it only has a meaning together with pixels.

    Args:
        model: whose logits they are.
        sampler: rows `[B]` for log-probabilities `[B, R]`.
        processors: applied in order.
        allowed: booleans `[R]`: rows that may be chosen; None for all.
    """

    def __init__(
        self,
        model: Gemma3Model,
        sampler: SamplerFunction,
        processors: Sequence[LogitsProcessor] = (),
        allowed: np.ndarray | None = None,
    ) -> None:
        self.model, self.sampler, self.processors = model, sampler, list(processors)
        image_id = model.config.image_token_id
        mask = np.ones(model.rows.size, bool) if allowed is None else allowed.copy()
        if image_id is not None and image_id < model.config.text.vocab_size:
            mask[int(number(model.rows.to_rows(mx.array(image_id, mx.int32))))] = False
        self._allowed = None if mask.all() else mx.array(mask)
        self._ids: mx.array | None = None
        if isinstance(sampler, Sampler) and sampler.is_greedy and not self.processors:
            ids = np.asarray(model.rows.to_ids(mx.arange(model.rows.size, dtype=mx.int32)))
            if model.rows.kept is not None:
                mask &= np.asarray(model.rows.kept)
            self._ids = mx.array(np.where(mask, ids, -1).astype(np.int32))

    def logprobs(self, tokens: list[int], logits: mx.array) -> mx.array:
        """Log-probabilities float32 `[B, R]` after the processors, from logits of the same shape.

        Args:
            tokens: what the processors see: everything before the token to choose.
            logits: `[B, R]`.
        """
        logits = logits.astype(mx.float32)
        if self._allowed is not None:
            logits = mx.where(self._allowed, logits, -mx.inf)
        for processor in self.processors:
            logits = processor(tokens, logits)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def draw(self, tokens: list[int], hidden: mx.array) -> tuple[mx.array, mx.array]:
        """A token and its log-probability, both `[B]`, from hidden states `[B, E]`; nothing is evaluated.

        Greedy choice without processors reads the head once and never writes the logits.
        """
        if self._ids is not None:
            return self.model.choice(hidden, self._ids)
        return self.choose(tokens, self.model.logits(hidden))

    def choose(self, tokens: list[int], logits: mx.array) -> tuple[mx.array, mx.array]:
        """A token and its log-probability, both `[B]`, from logits `[B, R]`; nothing is evaluated."""
        logprobs = self.logprobs(tokens, logits)
        rows = self.sampler(logprobs)
        chosen = mx.take_along_axis(logprobs, rows[:, None], axis=-1)[:, 0]
        return self.model.rows.to_ids(rows), chosen
