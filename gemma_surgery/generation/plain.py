"""Generating one token per forward pass."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import mlx.core as mx

from gemma_surgery.generation.choice import Chooser, Drawn, number

if TYPE_CHECKING:
    from gemma_surgery.generation.prompt_cache import PromptCache

# Tokens between two times that MLX's pool of freed buffers is emptied.
CLEAR_EVERY = 256


def plain_tokens(
    chooser: Chooser, cache: PromptCache, hidden: mx.array, limit: int, keep_cache: bool
) -> Generator[Drawn, None, None]:
    """Draw up to `limit` tokens.

    One step ahead: while the caller works on a token, the pass that follows it is already under way.

    Args:
        chooser: model, sampler and processors.
        cache: holds the prompt; holds every token given out whenever this waits for the caller.
        hidden: the last state of the prompt, `[1, E]`.
        limit: tokens at most, 1 or more.
        keep_cache: whether anyone uses the cache afterwards; if not, the last token is not run through the
            model.

    Yields:
        The tokens in order, the end-of-sequence ones like any other: the caller decides when to stop.
    """
    model = chooser.model
    token, logprob = chooser.draw(cache.tokens, hidden)
    mx.async_eval(token, logprob)
    for count in range(1, limit + 1):
        is_last = count == limit
        if not is_last or keep_cache:
            hidden = model.forward(model.embed(token.astype(mx.int32)[:, None]), cache.layers)[:, -1]
            mx.async_eval(hidden)
        drawn = Drawn(int(number(token)), number(logprob))
        cache.tokens.append(drawn.token)
        if not is_last:
            token, logprob = chooser.draw(cache.tokens, hidden)
            mx.async_eval(token, logprob)
        if count % CLEAR_EVERY == 0:
            mx.clear_cache()
        yield drawn
