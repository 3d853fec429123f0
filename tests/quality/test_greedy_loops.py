"""A model that is stuck is counted as one."""

from __future__ import annotations

from gemma_surgery.calibration.samples import make_samples
from gemma_surgery.generation.loading import load
from gemma_surgery.generation.repetition import MIN_TOKENS
from gemma_surgery.quality.repetition import Continuation, Repetitions, continue_greedily


def test_rate_and_longest_loop_are_over_all_continuations() -> None:
    found = Repetitions(
        (
            Continuation("a", 256, 200, False),
            Continuation("b", 5, 0, True),
            Continuation("c", 256, 130, False),
        )
    )
    assert found.rate == 2 / 3 and found.longest_tokens == 200
    assert found.to_json() == {
        "continuations": 3,
        "loops": 2,
        "longest_loop_tokens": 200,
        "ended": 1,
        "tokens": 517,
    }


def test_a_trained_model_ends_its_answers(dense, passages) -> None:
    model, tokenizer = load(dense)
    samples = make_samples(passages[:3], tokenizer, model.config, chat=True, max_tokens=512)
    found = continue_greedily(model, tokenizer, samples)
    assert found.rate == 0.0 and all(each.ended for each in found.continuations)
    assert [each.text for each in found.continuations] == [each.text for each in passages[:3]]


def test_a_model_that_says_one_thing_forever_is_in_a_loop(dense, passages, monkeypatch) -> None:
    model, tokenizer = load(dense)
    word = tokenizer.encode(" red")[-1]
    choice = model.choice

    def stuck(hidden, ids):
        token, logprob = choice(hidden, ids)
        return token * 0 + word, logprob

    monkeypatch.setattr(model, "choice", stuck)
    samples = make_samples(passages[:1], tokenizer, model.config, chat=True, max_tokens=512)
    found = continue_greedily(model, tokenizer, samples, max_tokens=MIN_TOKENS + 10)
    assert not found.continuations[0].ended
    assert found.rate == 1.0 and found.longest_tokens == MIN_TOKENS + 10
