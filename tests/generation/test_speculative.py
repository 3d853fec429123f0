from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fake_model import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    TOKENS,
    A,
    FakeModel,
    FakeTokenizer,
    chi_square_limit,
)

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.logits_processors import RepetitionPenalty
from gemma_surgery.generation.prompt import Prompt
from gemma_surgery.generation.prompt_cache import PromptCache
from gemma_surgery.generation.request import Draft
from gemma_surgery.generation.samplers import make_sampler
from gemma_surgery.generation.stream import Generated, stream_generate
from gemma_surgery.models import CacheOptions

PROMPT = [BOS, A, A + 3, A + 1]
SLACK = CacheOptions(slack=8)
# What a draft for English might have left of the vocabulary.
KEPT = [EOS, BOS, IMAGE, A, A + 1, A + 3, A + 4, A + 6]


def drafting(target: FakeModel, draft: FakeModel, kept: list[int] | None = None) -> Draft:
    return Draft.of(target, FakeTokenizer(), draft, FakeTokenizer(kept=kept))


def run(model: FakeModel, draft: Draft | None, prompt: Any = PROMPT, **options: Any) -> list[Generated]:
    settings = {"eos_token_ids": (), **options}
    return list(stream_generate(model, FakeTokenizer(), prompt, draft_model=draft, **settings))


def tokens(steps: list[Generated]) -> list[int]:
    return [step.token for step in steps]


def similar(model: FakeModel, amount: float, kept: list[int] | None = None) -> FakeModel:
    """A draft whose table is the model's with noise."""
    draft = FakeModel(kept=kept, order_one=model.order_one)
    noise = np.random.default_rng(99).normal(size=model.table.shape) * amount
    draft.table = (model.table + noise).astype(np.float32)
    return draft


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
def test_greedy_gives_the_same_tokens_whatever_the_draft_proposes(noise: float, count: int) -> None:
    for seed in range(4):
        model = FakeModel(seed)
        draft = drafting(model, similar(model, noise))
        for limit in (1, 2, 5, 40):
            steps = run(model, draft, max_tokens=limit, num_draft_tokens=count)
            assert tokens(steps) == model.greedy(PROMPT, limit)
            assert [s.finish_reason for s in steps] == [None] * (limit - 1) + ["length"]


def test_a_hundred_prompts_give_the_tokens_of_plain_greedy() -> None:
    model = FakeModel(1)
    draft = drafting(model, similar(model, 1.0, KEPT), KEPT)
    for seed in range(100):
        prompt = [BOS, *np.random.default_rng(seed).integers(A, len(TOKENS), 6).tolist()]
        assert tokens(run(model, draft, prompt, max_tokens=12)) == model.greedy(prompt, 12)


def test_a_perfect_draft_is_always_accepted_and_saves_passes() -> None:
    model = FakeModel(2)
    steps = run(model, drafting(model, similar(model, 0.0)), max_tokens=41, num_draft_tokens=3)
    # The first token comes with the prompt, then 10 passes give 3 proposals and one more token each.
    assert model.passes == [4] + [4] * 10
    assert (steps[-1].drafted, steps[-1].accepted) == (30, 30)
    assert [step.from_draft for step in steps[1:]] == [True, True, True, False] * 10


def test_a_hopeless_draft_is_never_accepted_and_costs_no_tokens() -> None:
    model = FakeModel(3)
    opposite = FakeModel(3)
    opposite.table = -model.table
    steps = run(model, drafting(model, opposite), max_tokens=20)
    assert steps[-1].accepted == 0 < steps[-1].drafted
    assert tokens(steps) == model.greedy(PROMPT, 20)


def test_the_counts_agree_with_the_steps() -> None:
    model = FakeModel(4)
    steps = run(model, drafting(model, similar(model, 0.7)), max_tokens=80)
    assert steps[-1].accepted == sum(step.from_draft for step in steps)
    assert 0 < steps[-1].accepted < steps[-1].drafted


def test_the_logprob_is_the_main_models_for_every_token() -> None:
    model = FakeModel(5)
    sampler = make_sampler(1.5, top_k=6, seed=1)
    steps = run(model, drafting(model, similar(model, 0.5)), max_tokens=30, sampler=sampler)
    assert len({step.from_draft for step in steps}) == 2
    for index, step in enumerate(steps):
        share = model.probabilities(PROMPT + tokens(steps)[:index])[step.token]
        assert step.logprob == pytest.approx(float(np.log(share)), abs=1e-5)


@pytest.mark.parametrize("kept_by_target", [None, KEPT])
@pytest.mark.parametrize("kept_by_draft", [None, [EOS, BOS, A, A + 1, A + 3, A + 5]])
def test_vocabularies_that_differ_give_the_same_greedy_tokens(
    kept_by_target: list[int] | None, kept_by_draft: list[int] | None
) -> None:
    model = FakeModel(6, kept=kept_by_target)
    draft_model = similar(model, 0.5, kept_by_draft)
    steps = run(model, drafting(model, draft_model, kept_by_draft), max_tokens=60)
    assert tokens(steps) == model.greedy(PROMPT, 60)
    assert steps[-1].accepted > 0


def transitions(steps: list[Generated]) -> np.ndarray:
    seen = np.zeros((len(TOKENS), len(TOKENS)))
    for before, after in itertools.pairwise(steps):
        seen[before.token, after.token] += 1
    return seen


def assert_drawn_from(model: FakeModel, seen: np.ndarray, temperature: float, top_k: int = 0) -> None:
    statistic = degrees = 0.0
    for token, counts in enumerate(seen):
        if counts.sum() < 20:
            continue
        shares = model.probabilities([token])
        if top_k:
            shares = np.where(shares >= np.sort(shares)[-top_k], shares, 0)
        shares = np.where(shares > 0, shares, 0) ** (1 / temperature)
        expected = shares / shares.sum() * counts.sum()
        assert counts[expected == 0].sum() == 0
        # Rare outcomes together, so that the approximation by chi-square holds.
        rare = expected < 5
        pairs = [(c, e) for c, e, r in zip(counts, expected, rare, strict=True) if not r]
        pairs += [(counts[rare].sum(), expected[rare].sum())] if expected[rare].sum() >= 1 else []
        statistic += sum((c - e) ** 2 / e for c, e in pairs)
        degrees += len(pairs) - 1
    assert degrees > 30
    assert statistic < chi_square_limit(int(degrees))


def order_one(kept: list[int] | None = None, seed: int = 8) -> FakeModel:
    return FakeModel(seed, order_one=True, sharpness=1.0, context=100_000, kept=kept)


@pytest.mark.parametrize(
    ("kept_by_target", "kept_by_draft", "noise", "settings"),
    [
        (None, None, 1.0, {"temperature": 1.0}),
        (None, None, 5.0, {"temperature": 1.0}),
        (None, KEPT, 1.0, {"temperature": 1.5, "top_k": 6}),
        (KEPT, None, 0.5, {"temperature": 0.7}),
        (None, None, 0.0, {"temperature": 1.0}),
    ],
)
def test_sampling_with_a_draft_follows_the_main_models_distribution(
    kept_by_target: list[int] | None,
    kept_by_draft: list[int] | None,
    noise: float,
    settings: dict[str, Any],
) -> None:
    model = order_one(kept_by_target)
    draft_model = similar(model, noise, kept_by_draft)
    draft_model.config.text.max_position_embeddings = 100_000
    steps = run(
        model,
        drafting(model, draft_model, kept_by_draft),
        max_tokens=2000,
        sampler=make_sampler(**settings, seed=4),
    )
    assert_drawn_from(model, transitions(steps), settings["temperature"], settings.get("top_k", 0))
    if noise == 0:
        assert steps[-1].accepted == steps[-1].drafted
        # Then the main model's own tokens, too, are drawn from p as it is.
        own = np.zeros_like(transitions(steps))
        for before, after in itertools.pairwise(steps):
            own[before.token, after.token] += not after.from_draft
        assert_drawn_from(model, own, 1.0)


def test_a_sampler_of_ones_own_is_followed_exactly() -> None:
    model = order_one()
    key = mx.random.key(3)

    def sampler(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(logprobs, key=now)

    draft_model = similar(model, 1.0)
    draft_model.config.text.max_position_embeddings = 100_000
    steps = run(model, drafting(model, draft_model), max_tokens=2000, sampler=sampler)
    assert_drawn_from(model, transitions(steps), 1.0)
    assert steps[-1].accepted > 200


def test_processors_see_the_proposals_before_each_position() -> None:
    model = FakeModel(9)
    plain = run(model, None, max_tokens=60, logits_processors=[RepetitionPenalty(model, 1.5, 6)])
    draft = drafting(model, similar(model, 0.5))
    steps = run(model, draft, max_tokens=60, logits_processors=[RepetitionPenalty(model, 1.5, 6)])
    assert tokens(steps) == tokens(plain) != model.greedy(PROMPT, 60)


def test_a_draft_follows_the_main_models_penalty() -> None:
    model = FakeModel(9)
    penalty = [RepetitionPenalty(model, 1.5, 6)]
    steps = run(model, drafting(model, similar(model, 0.0)), max_tokens=60, logits_processors=penalty)
    assert tokens(steps) != model.greedy(PROMPT, 60)
    assert steps[-1].accepted == steps[-1].drafted > 0


def test_ids_that_the_main_model_lacks_are_never_proposed() -> None:
    model = FakeModel(9, kept=KEPT)
    draft_model = similar(model, 0.0)
    draft_model.table[:, [index for index in range(len(TOKENS)) if index not in KEPT]] = 50.0
    steps = run(model, drafting(model, draft_model), max_tokens=40)
    assert steps[-1].accepted == steps[-1].drafted > 0


def test_a_processor_that_only_fits_the_main_model_is_obeyed() -> None:
    model = FakeModel(9)

    def no_repeats(history: list[int], logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == history[-1], -mx.inf, logits)

    plain = run(model, None, max_tokens=40, logits_processors=[no_repeats])
    steps = run(model, drafting(model, similar(model, 0.5)), max_tokens=40, logits_processors=[no_repeats])
    assert tokens(steps) == tokens(plain)
    assert all(a != b for a, b in zip(tokens(steps), tokens(steps)[1:], strict=False))


def test_stop_strings_and_end_tokens_work_within_a_block() -> None:
    model = FakeModel(7)
    greedy = model.greedy(PROMPT, 200)
    draft = drafting(model, similar(model, 0.0))
    steps = run(model, draft, max_tokens=200, eos_token_ids=None, num_draft_tokens=5)
    assert tokens(steps) == greedy[: greedy.index(EOS) + 1]
    assert steps[-1].finish_reason == "stop"
    stop = "".join(TOKENS[index] for index in greedy[10:12])
    assert run(model, draft, max_tokens=200, stop=stop)[-1].finish_reason == "stop"


@pytest.mark.parametrize("noise", [0.0, 0.8, 30.0])
@pytest.mark.parametrize("taken", range(1, 14))
def test_both_caches_hold_the_tokens_given_out_wherever_it_ends(taken: int, noise: float) -> None:
    model = FakeModel(11)
    draft_model = similar(model, noise)
    draft = drafting(model, draft_model)
    for limit in (taken, taken + 1, 50):
        cache, draft_cache = PromptCache.empty(model, SLACK), PromptCache.empty(draft_model, SLACK)
        stream = stream_generate(
            model,
            FakeTokenizer(),
            PROMPT,
            draft_model=draft,
            cache=cache,
            draft_cache=draft_cache,
            max_tokens=limit,
            eos_token_ids=(),
        )
        got = [next(stream).token for _ in range(taken)]
        if limit == taken:
            assert next(stream, None) is None
        else:
            stream.close()
        assert got == model.greedy(PROMPT, taken)
        assert cache.tokens == cache.layers[0].ids == [*PROMPT, *got]
        assert draft_cache.tokens == draft_cache.layers[0].ids == [*PROMPT, *got]
        # And the next turn goes on from there.
        turn = [A + 2, A]
        steps = run(model, draft, turn, cache=cache, draft_cache=draft_cache, max_tokens=6)
        assert tokens(steps) == model.greedy([*PROMPT, *got, *turn], 6)
        assert draft_cache.layers[0].ids == [*PROMPT, *got, *turn, *tokens(steps)]


def test_tokens_that_the_draft_lacks_are_spelled_in_those_it_has() -> None:
    model = FakeModel(12)
    kept = [EOS, BOS, A, A + 1, A + 3]
    draft_model = FakeModel(12, kept=kept)

    class Spelling(FakeTokenizer):
        def encode(self, text: str, special_tokens: bool = True) -> list[int]:
            return {"c": [A, A + 1]}.get(text, [A + 3, A + 3]) if text not in "abd" else super().encode(text)

    draft = Draft.of(model, FakeTokenizer(), draft_model, Spelling(kept=kept))
    draft_cache = PromptCache.empty(draft_model, SLACK)
    cache = PromptCache.empty(model, SLACK)
    prompt = [BOS, A + 2, A]
    steps = run(model, draft, prompt, cache=cache, draft_cache=draft_cache, max_tokens=30)
    assert tokens(steps) == model.greedy(prompt, 30)
    assert draft_cache.layers[0].ids[:4] == [BOS, A, A + 1, A]
    assert set(draft_cache.layers[0].ids) <= set(kept)
    assert len(draft_cache.layers[0].ids) > len(cache.layers[0].ids)


def test_a_draft_with_a_shorter_context_stops_proposing() -> None:
    model = FakeModel(13)
    draft_model = similar(model, 0.0)
    draft_model.config.text.max_position_embeddings = 12
    steps = run(model, drafting(model, draft_model), max_tokens=40)
    assert tokens(steps) == model.greedy(PROMPT, 40)
    assert 0 < steps[-1].accepted < 12


def image_prompt() -> Prompt:
    return Prompt([BOS, *[IMAGE] * IMAGE_TOKENS, A], np.ones((1, 2, 2, 3), np.float32))


def test_a_draft_that_sees_images_alike_gets_the_image() -> None:
    model = FakeModel(14)
    draft_model = similar(model, 0.0)
    steps = run(model, drafting(model, draft_model), image_prompt(), max_tokens=9)
    assert len(draft_model.image_calls) == 1
    assert steps[-1].accepted == steps[-1].drafted > 0


@pytest.mark.parametrize("change", ["image_size", "tokens_per_image", "none"])
def test_a_draft_that_sees_images_otherwise_needs_its_own_prompt(change: str) -> None:
    model = FakeModel(14)
    draft_model = FakeModel(14, has_vision=change != "none")
    if change != "none":
        setattr(draft_model.config.vision, change, 4)
    draft = drafting(model, draft_model)
    with pytest.raises(SurgeryError, match="need a draft model that sees images as the main model does"):
        run(model, draft, image_prompt(), max_tokens=5)
    steps = run(model, draft, image_prompt(), draft_prompt=[BOS, A], max_tokens=20)
    assert tokens(steps) == model.greedy([BOS, 112, 112, 112, A], 20)


def test_ids_that_mean_something_else_to_the_draft_are_refused() -> None:
    model = FakeModel()
    moved = [*TOKENS[:-2], TOKENS[-1], TOKENS[-2]]
    with pytest.raises(SurgeryError, match=r"need a draft model whose token ids mean the same .* `h`, `g`"):
        Draft.of(model, FakeTokenizer(), FakeModel(), FakeTokenizer(moved))
    with pytest.raises(SurgeryError, match="got other ids for `x`"):
        Draft.of(model, FakeTokenizer(), FakeModel(), FakeTokenizer([*TOKENS[:-1], "x"]))
    # A renumbered vocabulary: one token at an id that is free in the other.
    sparse = FakeTokenizer(kept=[*range(len(TOKENS) - 1)])
    with pytest.raises(SurgeryError, match="got other ids for `a`"):
        Draft.of(model, sparse, FakeModel(), FakeTokenizer([*TOKENS[:-1], "a"], kept=[BOS, len(TOKENS) - 1]))
    with pytest.raises(SurgeryError, match="every token"):
        Draft.of(model, FakeTokenizer(kept=[BOS]), FakeModel(), FakeTokenizer(kept=[A]))


def test_a_draft_with_fewer_tokens_is_accepted() -> None:
    Draft.of(FakeModel(), FakeTokenizer(), FakeModel(kept=KEPT), FakeTokenizer(kept=KEPT))
    Draft.of(FakeModel(), FakeTokenizer(kept=KEPT), FakeModel(), FakeTokenizer())


def test_a_filled_cache_without_the_drafts_is_refused() -> None:
    model = FakeModel()
    draft = drafting(model, FakeModel())
    cache = PromptCache.empty(model, SLACK)
    run(model, None, cache=cache, max_tokens=2)
    with pytest.raises(SurgeryError, match="need `draft_cache` with a cache that holds 6 tokens"):
        run(model, draft, [A], cache=cache)


def test_settings_of_drafts_that_make_no_sense_are_refused() -> None:
    model = FakeModel()
    draft = drafting(model, FakeModel())
    with pytest.raises(SurgeryError, match="need 1 draft token or more, got 0"):
        run(model, draft, num_draft_tokens=0)
    with pytest.raises(SurgeryError, match="need `draft_model` with `draft_prompt` or `draft_cache`"):
        run(model, None, draft_prompt=[BOS])
    cache = PromptCache.empty(model)
    cache.layers[0].window = 4
    with pytest.raises(
        SurgeryError, match="need a cache with 3 tokens of slack for as many draft tokens, got 0"
    ):
        run(model, draft, cache=cache)
