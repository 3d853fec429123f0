from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fake_model import BOS, EOS, IMAGE, IMAGE_TOKENS, TOKENS, A, FakeModel, FakeTokenizer

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation import loop
from gemma_surgery.generation.logits_processors import LogitBias, RepetitionPenalty
from gemma_surgery.generation.prompt import Prompt
from gemma_surgery.generation.prompt_cache import PromptCache
from gemma_surgery.generation.repetition import MIN_TOKENS
from gemma_surgery.generation.samplers import make_sampler
from gemma_surgery.generation.stream import Generated, generate, stream_generate

PROMPT = [BOS, A, A + 3, A + 1]


def run(model: FakeModel, prompt: Any = PROMPT, **options: Any) -> list[Generated]:
    return list(stream_generate(model, FakeTokenizer(), prompt, **{"eos_token_ids": (), **options}))


def tokens(steps: list[Generated]) -> list[int]:
    return [step.token for step in steps]


def text_of(ids: list[int]) -> str:
    return "".join(TOKENS[index] for index in ids)


@pytest.mark.parametrize("seed", range(10))
def test_greedy_takes_the_most_likely_token_each_time(seed: int) -> None:
    model = FakeModel(seed)
    steps = run(model, max_tokens=60)
    assert tokens(steps) == model.greedy(PROMPT, 60)
    assert "".join(step.text for step in steps) == text_of(tokens(steps))


def test_a_pruned_vocabulary_gives_original_ids() -> None:
    kept = [EOS, BOS, A, A + 3, A + 1, A + 6]
    model = FakeModel(4, kept=kept)
    got = tokens(run(model, max_tokens=50))
    assert got == model.greedy(PROMPT, 50)
    assert set(got) <= set(kept)
    assert len(set(got)) > 2


def test_sampled_tokens_follow_the_seed() -> None:
    def sampled(seed: int) -> list[int]:
        return tokens(run(FakeModel(), max_tokens=40, sampler=make_sampler(1.0, seed=seed)))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_the_logprob_is_taken_before_filters_and_temperature_and_after_processors() -> None:
    model = FakeModel(3)
    sampler = make_sampler(temperature=3.0, top_k=4, seed=9)
    steps = run(model, max_tokens=20, sampler=sampler)
    for index, step in enumerate(steps):
        share = model.probabilities(PROMPT + tokens(steps)[:index])[step.token]
        assert step.logprob == pytest.approx(math.log(share), abs=1e-5)
    # Everything but one token forbidden: that one is certain.
    only = {index: -math.inf for index in range(len(TOKENS)) if index != A}
    certain = run(model, max_tokens=3, logits_processors=[LogitBias(model, only)])
    assert tokens(certain) == [A] * 3
    assert [step.logprob for step in certain] == [0.0] * 3


def test_processors_see_the_prompt_and_every_token_before() -> None:
    seen: list[list[int]] = []

    def spy(history: list[int], logits: mx.array) -> mx.array:
        seen.append(list(history))
        return logits

    model = FakeModel(5)
    steps = run(model, max_tokens=6, logits_processors=[spy])
    assert seen == [PROMPT + tokens(steps)[:count] for count in range(6)]


def test_the_image_token_is_never_chosen() -> None:
    model = FakeModel(6)
    model.table[:, IMAGE] = 50.0
    assert IMAGE not in tokens(run(model, max_tokens=30))
    assert IMAGE not in tokens(run(model, max_tokens=30, sampler=make_sampler(1.0, seed=0)))
    # Without an image token in the config nothing is held back.
    assert set(tokens(run(FakeModel(6, has_vision=False), max_tokens=30))) != set()


def test_the_end_of_sequence_token_stops_and_is_not_shown() -> None:
    model = FakeModel(7)
    greedy = model.greedy(PROMPT, 200)
    assert EOS in greedy
    steps = run(model, max_tokens=200, eos_token_ids=None)
    end = greedy.index(EOS)
    assert tokens(steps) == greedy[: end + 1]
    assert [step.finish_reason for step in steps] == [None] * end + ["stop"]
    assert "".join(step.text for step in steps) == text_of(greedy[:end])


def test_any_of_several_end_tokens_stops() -> None:
    model = FakeModel(7)
    greedy = model.greedy(PROMPT, 50)
    ends = {greedy[10], greedy[20]}
    steps = run(model, max_tokens=50, eos_token_ids=ends)
    assert len(steps) == min(greedy.index(token) for token in ends) + 1
    assert steps[-1].finish_reason == "stop"


def test_a_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    model = FakeModel(8)
    greedy = model.greedy(PROMPT, 60)
    whole = text_of(greedy)
    stop = text_of(greedy[20:23])
    steps = run(model, max_tokens=60, stop=[stop])
    first = whole.index(stop)
    assert "".join(step.text for step in steps) == whole[:first]
    assert steps[-1].finish_reason == "stop"
    assert text_of(tokens(steps)).endswith(stop)


def test_a_half_matched_stop_string_is_shown_at_the_end() -> None:
    model = FakeModel(8)
    greedy = model.greedy(PROMPT, 10)
    stop = text_of(greedy[8:]) + "?"
    steps = run(model, max_tokens=10, stop=stop)
    assert steps[-1].finish_reason == "length"
    assert "".join(step.text for step in steps) == text_of(greedy)


def test_the_limit_ends_with_length() -> None:
    steps = run(FakeModel(9), max_tokens=3)
    assert [step.finish_reason for step in steps] == [None, None, "length"]
    assert [step.generation_tokens for step in steps] == [1, 2, 3]
    assert {step.prompt_tokens for step in steps} == {4}


@pytest.mark.parametrize("max_tokens", [-1, 1000])
def test_the_end_of_the_context_ends_with_length(max_tokens: int) -> None:
    model = FakeModel(9, context=20)
    steps = run(model, max_tokens=max_tokens)
    assert len(steps) == 16
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize("length", [20, 21, 500])
def test_a_prompt_that_leaves_no_room_is_refused_before_any_work(length: int) -> None:
    model = FakeModel(context=20)
    with pytest.raises(SurgeryError, match=rf"need a prompt of fewer than 20 tokens, .* got {length}"):
        stream_generate(model, FakeTokenizer(), [A] * length)
    assert model.passes == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "need a prompt of at least one token"),
        ([BOS, 12], "need token ids from 0 to 11, got 12"),
        ([-1], "need token ids from 0 to 11, got -1"),
        (Prompt([BOS, *[IMAGE] * IMAGE_TOKENS]), "need 0 runs of 3 image tokens"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused_before_any_work(prompt: Any, message: str) -> None:
    model = FakeModel()
    with pytest.raises(SurgeryError, match=message):
        stream_generate(model, FakeTokenizer(), prompt)
    assert model.passes == []


def test_a_pruned_id_in_the_prompt_is_refused_by_name() -> None:
    model = FakeModel(kept=[BOS, A])
    with pytest.raises(SurgeryError, match=r"need token ids that the model has, got the pruned 5 \(`b`\)"):
        stream_generate(model, FakeTokenizer(), [BOS, A + 1])


@pytest.mark.parametrize("max_tokens", [0, -2])
def test_no_tokens_to_generate_is_refused(max_tokens: int) -> None:
    with pytest.raises(SurgeryError, match="need 1 token or more to generate"):
        stream_generate(FakeModel(), FakeTokenizer(), PROMPT, max_tokens=max_tokens)


def test_text_gets_the_begin_of_sequence_token_once() -> None:
    model = FakeModel(2)
    expected = model.greedy([BOS, A, A + 1], 5)
    assert tokens(run(model, "ab", max_tokens=5)) == expected
    assert tokens(run(model, [BOS, A, A + 1], max_tokens=5)) == expected
    cache = PromptCache.empty(model)
    steps = run(model, "ab", max_tokens=2, cache=cache)
    run(model, "c", max_tokens=1, cache=cache)
    assert cache.tokens[: 6 + 1 - 1] == [BOS, A, A + 1, *tokens(steps), A + 2]


def test_a_prompt_with_images_is_processed_with_its_pixels() -> None:
    model = FakeModel(2)
    pixels = np.ones((1, 2, 2, 3), np.float32)
    prompt = Prompt([BOS, *[IMAGE] * IMAGE_TOKENS, A], pixels)
    cache = PromptCache.empty(model)
    got = tokens(run(model, prompt, max_tokens=5, cache=cache))
    assert got == model.greedy([BOS, 112, 112, 112, A], 5)
    assert len(cache.images) == 1
    assert cache.tokens == [*prompt.tokens, *got]


@pytest.mark.parametrize("give_layers", [False, True])
def test_a_cache_is_continued_as_if_all_had_been_one_prompt(give_layers: bool) -> None:
    model = FakeModel(11)
    cache = PromptCache.empty(model)
    given = cache.layers if give_layers else cache
    first = tokens(run(model, max_tokens=7, cache=given))
    second = tokens(run(model, [A + 2, A], max_tokens=7, cache=given))
    assert first == model.greedy(PROMPT, 7)
    assert second == model.greedy([*PROMPT, *first, A + 2, A], 7)


@pytest.mark.parametrize("taken", [1, 2, 5, 7])
def test_leaving_early_leaves_the_cache_with_the_tokens_given_out(taken: int) -> None:
    model = FakeModel(11)
    cache = PromptCache.empty(model)
    stream = stream_generate(model, FakeTokenizer(), PROMPT, max_tokens=7, cache=cache, eos_token_ids=())
    got = [next(stream).token for _ in range(taken)]
    stream.close()
    assert cache.tokens == [*PROMPT, *got] == cache.layers[0].ids
    cache.check(model)


def test_a_cache_that_was_interrupted_is_refused() -> None:
    model = FakeModel()
    cache = PromptCache.empty(model)
    cache.layers[0].ids += [BOS, A]
    with pytest.raises(SurgeryError, match="need layers that have seen the cache's 0 tokens, got 2 seen"):
        stream_generate(model, FakeTokenizer(), [A], cache=cache)
    with pytest.raises(SurgeryError, match="need a cache of 1 layers, got 2"):
        stream_generate(model, FakeTokenizer(), [A], cache=model.make_cache() * 2)


def test_what_the_cache_holds_counts_against_the_context() -> None:
    model = FakeModel(context=20)
    cache = PromptCache.empty(model)
    run(model, max_tokens=10, cache=cache)
    with pytest.raises(SurgeryError, match=r"got 6 after 14 in the cache"):
        stream_generate(model, FakeTokenizer(), [A] * 6, cache=cache)
    assert len(run(model, [A] * 5, max_tokens=10, cache=cache)) == 1


def looping_model() -> FakeModel:
    model = FakeModel(order_one=True)
    model.table[:] = 1.0
    for token, following in ((A + 1, A + 2), (A + 2, A + 3), (A + 3, A + 1)):
        model.table[token, following] = 10.0
    return model


def test_a_loop_is_reported_and_goes_on_by_default() -> None:
    steps = run(looping_model(), max_tokens=200)
    assert steps[MIN_TOKENS - 2].repetition is None
    assert steps[MIN_TOKENS - 1].repetition is not None
    final = steps[-1]
    assert (final.finish_reason, len(steps)) == ("length", 200)
    assert (final.repetition.period, final.repetition.times, final.repetition.start) == (3, 66, 0)


def test_a_loop_ends_generation_on_request() -> None:
    steps = run(looping_model(), max_tokens=500, stop_on_repetition=True)
    assert (steps[-1].finish_reason, len(steps)) == ("repetition", MIN_TOKENS)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (MIN_TOKENS - 1)


def test_a_repetition_penalty_breaks_the_loop() -> None:
    model = looping_model()
    steps = run(model, max_tokens=300, logits_processors=[RepetitionPenalty(model, 100.0, 8)])
    for index in range(8, 300):
        assert steps[index].token not in tokens(steps)[index - 8 : index]


def test_generate_returns_the_last_step_with_the_whole_text() -> None:
    model, seen = FakeModel(12), []
    result = generate(model, FakeTokenizer(), PROMPT, max_tokens=9, eos_token_ids=(), on_step=seen.append)
    assert result.text == text_of(model.greedy(PROMPT, 9))
    assert (result.generation_tokens, result.finish_reason) == (9, "length")
    assert len(seen) == 9


def test_rates_divide_by_the_time_that_the_tokens_took(monkeypatch: pytest.MonkeyPatch) -> None:
    model, now = FakeModel(1), 50.0
    plain_forward = model.forward

    def slow_forward(inputs: mx.array, *rest: Any) -> mx.array:
        nonlocal now
        now += 2.0 if inputs.shape[1] > 1 else 0.25
        return plain_forward(inputs, *rest)

    model.forward = slow_forward  # type: ignore[method-assign]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))
    steps = run(model, max_tokens=11)
    # The fake does at once what a real model queues: the pass that follows a token counts before it is there.
    assert {step.prompt_tps for step in steps} == {4 / 2.25}
    assert [step.generation_tps for step in steps[:10]] == [0.0] + [4.0] * 9
    assert steps[10].generation_tps == 10 / (9 * 0.25)
    assert steps[-1].peak_memory_bytes == mx.get_peak_memory() > 0


def test_no_pass_is_run_for_a_last_token_that_nobody_continues() -> None:
    model = FakeModel(1)
    run(model, max_tokens=5)
    assert model.passes == [4, 1, 1, 1, 1]


def test_nothing_runs_before_the_first_step_is_asked_for() -> None:
    model = FakeModel()
    stream = stream_generate(model, FakeTokenizer(), PROMPT)
    assert model.passes == []
    next(stream)
    assert model.passes[0] == 4
