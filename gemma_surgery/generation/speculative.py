"""Speculative decoding: a small model proposes several tokens, the large one checks them in one pass.

What comes out is distributed exactly as if the large model had drawn alone (Leviathan, Kalman and Matias
2023, algorithm 1): a proposal x ~ q is kept with probability min(1, p(x) / q(x)), and after the first one
that is not, a token is drawn from max(p - q, 0), normalised. p and q are taken after the same processors,
filters and temperature. A sampler without a `distribution`, and the greedy one, draw from p at every position
instead, and proposals count as long as they equal what was drawn: also exact, and for greedy the same tokens
as without a draft.

"The same tokens" holds up to rounding: a pass over several tokens and one over a single token may add up in
another order, and a tie within that rounding can fall either way.

The two models share token ids, not vocabularies: q is looked up at the rows that p has. Ids that only the
draft has are never proposed; ids that only the main model has are given to the draft spelled in tokens that
it has.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.choice import Chooser, Drawn, number, numbers
from gemma_surgery.generation.drafting import DraftModel, Proposal, trim
from gemma_surgery.generation.samplers import Sampler

if TYPE_CHECKING:
    from gemma_surgery.generation.prompt_cache import PromptCache
    from gemma_surgery.models import KVCache

NUM_DRAFT_TOKENS = 3


class SpeculativeTokens:
    """Draws tokens as `plain_tokens` does, several per pass of the main model.

    Args:
        chooser: of the main model.
        cache: of the main model; holds the prompt.
        draft: the proposing side.
        num_draft_tokens: proposals per pass.

    Attributes:
        drafted: tokens proposed so far.
    """

    def __init__(
        self, chooser: Chooser, cache: PromptCache, draft: DraftModel, num_draft_tokens: int
    ) -> None:
        self.drafted = 0
        self._chooser, self._cache, self._draft = chooser, cache, draft
        self._num_draft_tokens = num_draft_tokens
        # One past the draft's last row stands for the ids that it lacks.
        missing = draft.rows_of_target < 0
        self._rows_in_draft = mx.array(
            np.where(missing, draft.model.rows.size, draft.rows_of_target).astype(np.int32)
        )

    def tokens(self, hidden: mx.array, limit: int, keep_cache: bool) -> Generator[Drawn, None, None]:
        """Draw up to `limit` tokens; see `plain_tokens` for the arguments."""
        token, logprob = self._chooser.draw(self._cache.tokens, hidden)
        block = [Drawn(int(number(token)), number(logprob))]
        count = given = 0
        try:
            while True:
                for drawn in block:
                    self._cache.tokens.append(drawn.token)
                    given += 1
                    yield drawn
                count += len(block)
                if count == limit:
                    break
                block = self._next_block(min(self._num_draft_tokens, limit - count - 1))
                given = 0
        except GeneratorExit:
            if keep_cache:
                self._settle(len(block) - given)
            raise
        if keep_cache:
            self._settle(0)

    def _settle(self, withheld: int) -> None:
        """Make both caches hold the tokens given out, when the last `withheld` of a block were not."""
        cache, model = self._cache, self._chooser.model
        if withheld:
            # The last token of a block is in no cache yet.
            trim(cache.layers, withheld - 1)
            self._draft.drop(withheld - 1)
        else:
            inputs = mx.array([cache.tokens[-1:]], mx.int32)
            mx.async_eval(model.forward(model.embed(inputs), cache.layers))
            self._draft.give(cache.tokens[-1])
        self._draft.flush()

    def _next_block(self, count: int) -> list[Drawn]:
        """The accepted ones of `count` proposals, and one token of the main model's own."""
        cache, model = self._cache, self._chooser.model
        self._draft.give(cache.tokens[-1])
        proposal = self._draft.propose(count, cache.tokens)
        inputs = mx.array(cache.tokens[-1:], mx.int32)
        if proposal is not None:
            inputs = mx.concatenate([inputs, proposal.tokens])
        hidden = model.forward(model.embed(inputs[None]), cache.layers)
        logits = model.logits(hidden)[0]
        if proposal is None:
            token, logprob = self._chooser.choose(cache.tokens, logits)
            return [Drawn(int(number(token)), number(logprob))]

        logprobs = self._logprobs(logits, proposal)
        rows = model.rows.to_rows(proposal.tokens)
        accepted, own_row = self._verdict(logprobs, rows, proposal)
        own_logprob = mx.take(mx.take(logprobs, accepted, axis=0), own_row)
        own_token = model.rows.to_ids(own_row)
        proposed_logprobs = mx.take_along_axis(logprobs[:-1], rows[:, None], axis=-1)[:, 0]
        mx.eval(accepted, own_token, own_logprob, proposed_logprobs, proposal.tokens)
        proposed, num_accepted = numbers(proposal.tokens), int(number(accepted))
        self.drafted += len(proposed)
        trim(cache.layers, len(proposed) - num_accepted)
        self._draft.settle(proposed, num_accepted)
        pairs = zip(proposed[:num_accepted], numbers(proposed_logprobs), strict=False)
        block = [Drawn(token, logprob, from_draft=True) for token, logprob in pairs]
        return [*block, Drawn(int(number(own_token)), number(own_logprob))]

    def _logprobs(self, logits: mx.array, proposal: Proposal) -> mx.array:
        """Log-probabilities `[N + 1, R]`, each row after the processors have seen the proposals before it."""
        if not self._chooser.processors:
            return self._chooser.logprobs(self._cache.tokens, logits)
        tokens, proposed = self._cache.tokens, numbers(proposal.tokens)
        return mx.concatenate(
            [
                self._chooser.logprobs([*tokens, *proposed[:index]], logits[index : index + 1])
                for index in range(len(proposed) + 1)
            ]
        )

    def _verdict(self, logprobs: mx.array, rows: mx.array, proposal: Proposal) -> tuple[mx.array, mx.array]:
        """How many proposals are accepted, and the row of the token that follows them; two scalars.

        Args:
            logprobs: `[N + 1, R]` of the main model.
            rows: `[N]` the main model's rows of the proposals.
            proposal: of the draft model.
        """
        sampler, count = self._chooser.sampler, rows.size
        if not isinstance(sampler, Sampler) or proposal.weights is None:
            drawn = sampler(logprobs)
            accepted = _leading(drawn[:count] == rows)
            return accepted, mx.take(drawn, accepted)

        p = mx.softmax(sampler.weights(logprobs), axis=-1)
        q = mx.softmax(proposal.weights, axis=-1)
        p_proposed = mx.take_along_axis(p[:count], rows[:, None], axis=-1)[:, 0]
        q_proposed = mx.take_along_axis(q, proposal.rows[:, None], axis=-1)[:, 0]
        chance = mx.random.uniform(shape=(count,), key=sampler.next_key())
        accepted = _leading(chance * q_proposed < p_proposed)
        p_next = mx.take(p, accepted, axis=0)
        q_next = mx.take(q, mx.minimum(accepted, count - 1), axis=0) * (accepted < count)
        q_next = mx.take(mx.pad(q_next, (0, 1)), self._rows_in_draft)
        rest = mx.maximum(p_next - q_next, 0)
        # All zero only where p equals q up to rounding.
        rest = mx.where(mx.any(rest > 0), rest, p_next)
        return accepted, sampler.draw(mx.log(rest)[None])[0]


def check_slack(layers: Sequence[KVCache], num_draft_tokens: int) -> None:
    """Check that proposals can be taken back out of a cache.

    Raises:
        SurgeryError: a local layer keeps too few tokens beyond its window.
    """
    slack = min(
        (layer.options.slack for layer in layers if layer.window is not None), default=num_draft_tokens
    )
    if slack < num_draft_tokens:
        raise SurgeryError(
            "speculative",
            f"need a cache with {num_draft_tokens} tokens of slack for as many draft tokens, got {slack}",
            f"make the cache with `CacheOptions(slack={num_draft_tokens})`, or draft fewer tokens",
        )


def _leading(accepted: mx.array) -> mx.array:
    """How many are true before the first that is not: booleans `[N]` -> int32 scalar."""
    return mx.sum(mx.cumprod(accepted.astype(mx.int32)))
