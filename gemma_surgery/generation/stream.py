"""The generation loop: prompt in, text out, token by token. One sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.choice import Chooser
from gemma_surgery.generation.drafting import DraftModel
from gemma_surgery.generation.logits_processors import LogitsProcessor
from gemma_surgery.generation.loop import FinishReason, Generated, GenerationLoop
from gemma_surgery.generation.prefill import PREFILL_STEP_SIZE, ProgressCallback
from gemma_surgery.generation.prompt_cache import PromptCache
from gemma_surgery.generation.request import Draft, read_prompt, token_limit
from gemma_surgery.generation.samplers import Sampler, SamplerFunction
from gemma_surgery.generation.speculative import NUM_DRAFT_TOKENS, check_slack
from gemma_surgery.generation.stopping import StopStrings
from gemma_surgery.models.kv_cache import CacheOptions, KVCache

if TYPE_CHECKING:
    from gemma_surgery.generation.prompt import Prompt
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

__all__ = ["FinishReason", "Generated", "generate", "stream_generate"]

DEFAULT_MAX_TOKENS = 256


def stream_generate(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int] | Prompt,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sampler: SamplerFunction | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    stop: Sequence[str] | str = (),
    eos_token_ids: Collection[int] | None = None,
    stop_on_repetition: bool = False,
    cache: PromptCache | list[KVCache] | None = None,
    cache_options: CacheOptions | None = None,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    prompt_progress_callback: ProgressCallback | None = None,
    draft_model: Gemma3Model | Draft | None = None,
    draft_prompt: str | Sequence[int] | Prompt | None = None,
    draft_cache: PromptCache | list[KVCache] | None = None,
    num_draft_tokens: int = NUM_DRAFT_TOKENS,
) -> Iterator[Generated]:
    """Continue a prompt. Arguments are checked at once; the work starts with the first `next`.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompt: text (encoded as it is, BOS in front), token ids (as they are), or a `Prompt` with its images.
        max_tokens: tokens at most; -1 for as many as the context has room for.
        sampler: rows `[B]` for log-probabilities `[B, R]`, e.g. from `make_sampler`; greedy by default.
        logits_processors: `processor(tokens, logits)`, applied in order, e.g. from `make_logits_processors`.
        stop: text that ends generation and is not shown.
        eos_token_ids: tokens that end generation; by default the model's own, an empty collection for none.
        stop_on_repetition: end with finish reason `repetition` as soon as the tokens loop.
        cache: continue after what it holds; `prompt` is then only what is new. When generation ends or is
            left early, it holds the prompt and every token given out.
        cache_options: of the cache that is made when none is given; dense by default.
        prefill_step_size: prompt tokens per forward pass; an image is never cut.
        prompt_progress_callback: called with the prompt tokens done and their total.
        draft_model: proposes tokens that the model checks several at a time; the result is the same
            distribution, and the same tokens when greedy. A `Draft` saves the check that the vocabularies
            agree.
        draft_prompt: the prompt for a draft model that sees images in another size.
        draft_cache: the draft model's, needed when `cache` holds something already.
        num_draft_tokens: proposals per pass.

    Yields:
        A step per token; the last one carries the finish reason and the rest of the text.

    Raises:
        SurgeryError: a prompt that is empty, too long or does not match its images, a value outside its
            range, a cache of another model, or a draft model that does not fit.
    """
    state, keeps_cache = _cache_of(model, cache, cache_options, num_draft_tokens if draft_model else 0)
    request = read_prompt(model, tokenizer, prompt, state.offset)
    chooser = Chooser(model, sampler or Sampler(), logits_processors)
    run = GenerationLoop(
        tokenizer=tokenizer,
        chooser=chooser,
        cache=state,
        request=request,
        limit=token_limit(max_tokens, request.room),
        stop=StopStrings(stop),
        eos=frozenset(model.config.eos_token_ids if eos_token_ids is None else eos_token_ids),
        stop_on_repetition=stop_on_repetition,
        keeps_cache=keeps_cache,
        prefill_step_size=prefill_step_size,
        progress=prompt_progress_callback,
    )
    if draft_model is None:
        if draft_prompt is not None or draft_cache is not None:
            raise SurgeryError(
                "speculative", "need `draft_model` with `draft_prompt` or `draft_cache`, got none"
            )
        return run.steps()
    if num_draft_tokens < 1:
        raise SurgeryError("speculative", f"need 1 draft token or more, got {num_draft_tokens}")
    if draft_cache is None and state.offset:
        raise SurgeryError(
            "speculative",
            f"need `draft_cache` with a cache that holds {state.offset} tokens, got none",
            "keep a `PromptCache` of the draft model beside the main model's",
        )
    draft = draft_model if isinstance(draft_model, Draft) else Draft.of(model, tokenizer, draft_model)
    draft_state, _ = _cache_of(draft.model, draft_cache, cache_options, num_draft_tokens)
    if draft_prompt is None:
        run.draft_request = draft.shared_prompt(model, request)
    else:
        run.draft_request = read_prompt(draft.model, draft.tokenizer, draft_prompt, draft_state.offset)
    for layers in (state.layers, draft_state.layers):
        check_slack(layers, num_draft_tokens)
    run.draft = DraftModel(draft.model, draft_state, chooser, draft.speller)
    run.num_draft_tokens = num_draft_tokens
    return run.steps()


def generate(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int] | Prompt,
    *,
    on_step: Callable[[Generated], None] | None = None,
    **options: object,
) -> Generated:
    """Continue a prompt and return the last step, with the whole text in it.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompt: as for `stream_generate`.
        on_step: called with every step as it comes.
        **options: the other arguments of `stream_generate`.

    Raises:
        SurgeryError: as `stream_generate`.
    """
    pieces: list[str] = []
    for step in stream_generate(model, tokenizer, prompt, **options):  # type: ignore[arg-type]
        pieces.append(step.text)
        if on_step:
            on_step(step)
    return replace(step, text="".join(pieces))


def _cache_of(
    model: Gemma3Model, cache: PromptCache | list[KVCache] | None, options: CacheOptions | None, slack: int
) -> tuple[PromptCache, bool]:
    """The cache to use, and whether it is the caller's."""
    if cache is None:
        options = options or CacheOptions()
        return PromptCache.empty(model, replace(options, slack=max(options.slack, slack))), False
    if isinstance(cache, PromptCache):
        cache.check(model)
        return cache, True
    # Bare layers do not say which tokens they have seen: processors see the new ones only.
    state = PromptCache(cache)
    state.check_layers(model)
    return state, True
