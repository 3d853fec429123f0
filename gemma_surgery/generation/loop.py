"""The loop itself: runs the prompts, draws tokens, and turns them into steps until something ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mlx.core as mx

from gemma_surgery.generation.choice import Chooser
from gemma_surgery.generation.drafting import DraftModel
from gemma_surgery.generation.plain import plain_tokens
from gemma_surgery.generation.prefill import ProgressCallback, prefill
from gemma_surgery.generation.prompt_cache import PromptCache, image_digest
from gemma_surgery.generation.repetition import LoopDetector, Repetition
from gemma_surgery.generation.request import Request
from gemma_surgery.generation.speculative import SpeculativeTokens
from gemma_surgery.generation.stopping import StopStrings

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Generated:
    """One step of generation.

    Attributes:
        text: what became showable with this token: perhaps nothing, perhaps several characters. The stop
            string and the end-of-sequence token are never part of it.
        token: original id of the token.
        logprob: natural logarithm of the token's probability under the model's distribution after the logits
            processors, before the sampler's filters and temperature.
        from_draft: whether the draft model proposed the token.
        prompt_tokens: tokens of the prompt, those that the cache held before not counted.
        prompt_tps: prompt tokens per second, up to the moment when the first token was there.
        generation_tokens: tokens generated so far, this one included.
        generation_tps: tokens after the first, per second since the first; 0 at the first.
        peak_memory_bytes: most memory that MLX has had in use in this process.
        finish_reason: on the last step: `stop` (end of sequence or stop string), `length` (`max_tokens` or
            the end of the context), or `repetition`; else None.
        repetition: the longest loop that the tokens so far fell into, or None.
        drafted: tokens that the draft model has proposed so far.
        accepted: how many of them were given out.
    """

    text: str
    token: int
    logprob: float
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory_bytes: int
    finish_reason: FinishReason | None = None
    repetition: Repetition | None = None
    drafted: int = 0
    accepted: int = 0


@dataclass
class GenerationLoop:
    """One generation, everything checked."""

    tokenizer: Tokenizer
    chooser: Chooser
    cache: PromptCache
    request: Request
    limit: int
    stop: StopStrings
    eos: frozenset[int]
    stop_on_repetition: bool
    keeps_cache: bool
    prefill_step_size: int
    progress: ProgressCallback | None
    draft: DraftModel | None = None
    draft_request: Request | None = None
    num_draft_tokens: int = 0

    def steps(self) -> Iterator[Generated]:
        """Run the prompt, then draw tokens until something ends it."""
        started = time.perf_counter()
        prompt_tokens = len(self.request.tokens)
        hidden = self._read_prompts()
        speculative = None
        if self.draft is None:
            source = plain_tokens(self.chooser, self.cache, hidden, self.limit, self.keeps_cache)
        else:
            speculative = SpeculativeTokens(self.chooser, self.cache, self.draft, self.num_draft_tokens)
            source = speculative.tokens(hidden, self.limit, self.keeps_cache)
        detokenizer, loops = self.tokenizer.detokenizer(), LoopDetector()
        accepted = 0
        with closing(source):
            for count, drawn in enumerate(source, start=1):
                now = time.perf_counter()
                if count == 1:
                    first, prompt_seconds = now, now - started
                accepted += drawn.from_draft
                looping = loops.add(drawn.token) is not None
                is_eos = drawn.token in self.eos
                text = "" if is_eos else self.stop.add(detokenizer.add(drawn.token))
                reason = self._finish_reason(is_eos, looping, count)
                if reason is not None:
                    text += self.stop.add(detokenizer.finish())
                    text += self.stop.finish()
                    reason = "stop" if self.stop.found is not None else reason
                yield Generated(
                    text=text,
                    token=drawn.token,
                    logprob=drawn.logprob,
                    from_draft=drawn.from_draft,
                    prompt_tokens=prompt_tokens,
                    prompt_tps=prompt_tokens / prompt_seconds,
                    generation_tokens=count,
                    generation_tps=(count - 1) / (now - first) if count > 1 else 0.0,
                    peak_memory_bytes=mx.get_peak_memory(),
                    finish_reason=reason,
                    repetition=loops.longest,
                    drafted=speculative.drafted if speculative else 0,
                    accepted=accepted,
                )
                if reason is not None:
                    return

    def _finish_reason(self, is_eos: bool, looping: bool, count: int) -> FinishReason | None:
        if is_eos or self.stop.found is not None:
            return "stop"
        if looping and self.stop_on_repetition:
            return "repetition"
        return "length" if count == self.limit else None

    def _read_prompts(self) -> mx.array:
        """The last hidden state `[1, E]` of the prompt."""
        model = self.chooser.model
        hidden = _prefill_into(self.cache, model, self.request, self.prefill_step_size, self.progress)
        hidden = hidden[:, -1]
        mx.async_eval(hidden)
        if self.draft is not None and self.draft_request is not None and self.draft_request.tokens:
            draft = self.draft
            mx.async_eval(
                _prefill_into(draft.cache, draft.model, self.draft_request, self.prefill_step_size, None)
            )
        return hidden


def _prefill_into(
    cache: PromptCache,
    model: Gemma3Model,
    request: Request,
    step_size: int,
    progress: ProgressCallback | None,
) -> mx.array:
    hidden = prefill(model, cache.layers, request.tokens, request.pixels, step_size, progress)
    cache.tokens += request.tokens
    if request.pixels is not None:
        cache.images += [image_digest(pixels) for pixels in request.pixels]
    return hidden
