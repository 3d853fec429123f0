"""The next turn of a chat: which tokens a cache already holds, and which are new."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from gemma_surgery.generation.prompt import Prompt


def common_prefix_length(held: Prompt, wanted: Prompt) -> int:
    """Return how many tokens two prompts share from the start, images by their pixels.

    An image block is shared as a whole or not at all: its tokens attend to each other.

    Args:
        held: what a cache was filled with, answers included (see `Prompt.followed_by`).
        wanted: what is to be in it.
    """
    length = min(len(held.tokens), len(wanted.tokens))
    pair = np.array([held.tokens[:length], wanted.tokens[:length]], np.int64)
    differs = np.flatnonzero(pair[0] != pair[1])
    if differs.size:
        length = int(differs[0])
    for index, (span, other) in enumerate(zip(held.image_spans, wanted.image_spans, strict=False)):
        if span[0] >= length:
            break
        if span != other or not _same_pixels(held, wanted, index):
            return min(span[0], length)
    return length


def continuation(held: Prompt, wanted: Prompt) -> tuple[int, Prompt]:
    """Return how many tokens of a cache to keep, and what to feed behind them.

    Where the model's answer, as the chat template writes it, becomes the tokens that the model chose, all is
    kept; where it becomes others, what comes before the first of them is.

    Args:
        held: what the cache was filled with, answers included.
        wanted: the prompt of the next turn, whole.

    Returns:
        The number of tokens to keep, and the rest of `wanted` with the pixels of the image blocks in it. The
        rest has at least one token: the logits behind the prompt are still to be computed.
    """
    keep = min(common_prefix_length(held, wanted), len(wanted.tokens) - 1)
    keep = max(0, _not_inside_a_block(wanted, keep))
    first = bisect_right([start for start, _ in wanted.image_spans], keep - 1)
    spans = tuple((start - keep, end - keep) for start, end in wanted.image_spans[first:])
    pixels = wanted.pixels[first:] if wanted.pixels is not None and spans else None
    return keep, Prompt(wanted.tokens[keep:], pixels, spans, wanted.text)


def _same_pixels(a: Prompt, b: Prompt, index: int) -> bool:
    if a.pixels is None or b.pixels is None:
        return False
    return bool(np.array_equal(a.pixels[index], b.pixels[index]))


def _not_inside_a_block(prompt: Prompt, length: int) -> int:
    """Return the start of the image block that a cut would divide, else the cut itself."""
    return next((start for start, end in prompt.image_spans if start < length < end), length)
