"""Reading prompts that begin alike: what the cache holds already is not read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemma_surgery.generation.continuation import continuation
from gemma_surgery.generation.prompt import Prompt, image_spans
from gemma_surgery.generation.prompt_cache import PromptCache, image_digest
from gemma_surgery.models import CacheOptions, KVCache

if TYPE_CHECKING:
    from gemma_surgery.models import Gemma3Model

# Tokens that local layers keep beyond their window, for prompts that differ from the last one in their end.
SLACK = 256


class PromptReader:
    """A model and what it has read.

    Args:
        model: any.
        options: of the caches that are made.
        cache: what it has read before, e.g. from a file.

    Attributes:
        cache: to be given to `stream_generate` with what `rest_of` returns.
        reused: tokens of the last prompt that were in the cache.
    """

    def __init__(self, model: Gemma3Model, options: CacheOptions, cache: PromptCache | None = None) -> None:
        self.model, self.options = model, options
        self.cache = PromptCache.empty(model, options) if cache is None else cache
        self.reused = 0

    def rest_of(self, wanted: Prompt) -> Prompt:
        """Cut the cache back to what a prompt begins with, and return the rest of the prompt.

        A local layer that no longer holds what it would have to go back to makes the cache start anew.

        Args:
            wanted: the whole prompt.
        """
        keep, rest = continuation(self._held(wanted), wanted)
        if not self._cut_back(keep):
            self.cache = PromptCache.empty(self.model, self.options)
            keep, rest = 0, wanted
        self.reused = keep
        return rest

    def snapshot(self) -> PromptCache:
        """Return what the cache holds now, untouched by what is read into it later."""
        cache = self.cache
        layers = [KVCache.restored(layer.state(), layer.meta()) for layer in cache.layers]
        # Of a block of accepted proposals, the last token is given out before the layers have seen it.
        return PromptCache(layers, cache.tokens[: cache.offset], list(cache.images))

    def _held(self, wanted: Prompt) -> Prompt:
        """The cache as a prompt; of its images only the digests are known."""
        image_id = self.model.config.image_token_id
        spans = () if image_id is None else image_spans(self.cache.tokens, image_id)
        pixels = None
        if wanted.pixels is not None and self.cache.images:
            # NaN equals nothing, not even itself.
            pixels = np.stack(
                [
                    its if image_digest(its) == digest else np.full_like(its, np.nan)
                    for its, digest in zip(wanted.pixels, self.cache.images, strict=False)
                ]
            )
        return Prompt(self.cache.tokens, pixels, spans)

    def _cut_back(self, keep: int) -> bool:
        """Keep the first tokens, or return False: also when a pass was interrupted between two layers."""
        offsets = {layer.offset for layer in self.cache.layers}
        if len(offsets) > 1 or keep > self.cache.offset or not self.cache.can_keep(keep):
            return False
        self.cache.keep(self.model, keep)
        return True
