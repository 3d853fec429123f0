"""The proposing side of speculative decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from gemma_surgery.generation.choice import Chooser, number
from gemma_surgery.generation.logits_processors import processors_for
from gemma_surgery.generation.samplers import Sampler
from gemma_surgery.generation.vocabularies import known_ids, rows_in

if TYPE_CHECKING:
    from gemma_surgery.generation.prompt_cache import PromptCache
    from gemma_surgery.models import Gemma3Model, KVCache

# Spells a token that the draft model lacks in tokens that it has.
Speller = Callable[[int], Sequence[int]]


class Proposal(NamedTuple):
    """Tokens that the draft model proposes.

    Attributes:
        tokens: int32 `[N]` original ids.
        rows: `[N]` the draft's rows of them.
        weights: float32 `[N, R]` what they were drawn by, as logarithms; None where they were not drawn.
    """

    tokens: mx.array
    rows: mx.array
    weights: mx.array | None


class DraftModel:
    """The proposing side: a model, its cache, and the tokens that the cache does not hold yet.

    Args:
        model: the draft model.
        cache: holds the prompt.
        chooser: of the main model; its processors and sampler are followed as far as they can be.
        speller: for tokens that the draft lacks; without one they are left out.
    """

    def __init__(
        self, model: Gemma3Model, cache: PromptCache, chooser: Chooser, speller: Speller | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self.rows_of_target = rows_in(model, chooser.model)
        self._known, self._speller = known_ids(model), speller
        sampler = chooser.sampler
        self._sampler = sampler if isinstance(sampler, Sampler) and not sampler.is_greedy else None
        shared = rows_in(chooser.model, model) >= 0
        greedy = Sampler()
        self._chooser = Chooser(
            model, greedy, processors_for(model, chooser.processors), None if shared.all() else shared
        )
        self._pending: list[int] = []

    def spell(self, token: int) -> list[int]:
        """The token in ids that the draft has; nothing where that cannot be."""
        if token < len(self._known) and self._known[token]:
            return [token]
        spelled = self._speller(token) if self._speller else []
        return [index for index in spelled if index < len(self._known) and self._known[index]]

    def give(self, token: int) -> None:
        """Take note of a token of the text; it goes into the cache with the next proposal."""
        self._pending += self.spell(token)

    def propose(self, count: int, tokens: list[int]) -> Proposal | None:
        """Propose up to `count` tokens to follow `tokens`; None when there is no room or nothing to go by."""
        room = self.model.config.text.max_position_embeddings - self.cache.offset - len(self._pending)
        count = min(count, room)
        if count < 1 or not self._pending:
            return None
        inputs = mx.array(self._pending, mx.int32)[None]
        self.cache.tokens += self._pending
        self._pending = []
        so_far = list(tokens) if self._chooser.processors else tokens
        drawn_rows: list[mx.array] = []
        drawn_weights: list[mx.array] = []
        for index in range(count):
            hidden = self.model.forward(self.model.embed(inputs), self.cache.layers)
            logprobs = self._chooser.logprobs(so_far, self.model.logits(hidden[:, -1]))
            if self._sampler is None:
                row = mx.argmax(logprobs, axis=-1)
            else:
                weights = self._sampler.weights(logprobs)
                row = self._sampler.draw(weights)
                drawn_weights.append(weights)
            drawn_rows.append(row)
            inputs = self.model.rows.to_ids(row).astype(mx.int32)[:, None]
            mx.async_eval(inputs)
            if index + 1 < count and self._chooser.processors:
                so_far.append(int(number(inputs)))
        rows = mx.concatenate(drawn_rows)
        return Proposal(
            tokens=self.model.rows.to_ids(rows).astype(mx.int32),
            rows=rows,
            weights=mx.concatenate(drawn_weights) if drawn_weights else None,
        )

    def settle(self, proposed: list[int], accepted: int) -> None:
        """Forget the proposals after the first `accepted` ones; the last proposal never went into the
        cache."""
        surplus = max(len(proposed) - 1 - accepted, 0)
        trim(self.cache.layers, surplus)
        self.cache.tokens += proposed[: min(accepted, len(proposed) - 1)]
        if accepted == len(proposed):
            self._pending = [*proposed[-1:], *self._pending]

    def drop(self, count: int) -> None:
        """Forget the last `count` accepted proposals as well."""
        from_pending = min(count, len(self._pending))
        del self._pending[len(self._pending) - from_pending :]
        trim(self.cache.layers, count - from_pending)
        del self.cache.tokens[len(self.cache.tokens) - (count - from_pending) :]

    def flush(self) -> None:
        """Bring the cache up to date."""
        if self._pending:
            inputs = mx.array(self._pending, mx.int32)[None]
            mx.async_eval(self.model.forward(self.model.embed(inputs), self.cache.layers))
            self.cache.tokens += self._pending
            self._pending = []


def trim(layers: Sequence[KVCache], count: int) -> None:
    """Forget the last `count` tokens in every layer."""
    if count:
        for layer in layers:
            layer.trim(count)
