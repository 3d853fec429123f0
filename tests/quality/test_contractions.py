"""The published failure, "I's" for "I'm", is seen in probabilities and in text."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.quality.contractions import (
    CONTEXTS,
    contraction_samples,
    impossible_forms,
    score_contractions,
)
from gemma_surgery.quality.evaluation import evaluate

ONLY = ("divergence", "repetition", "tasks", "images")


def scores(right: float, wrong: float) -> list[np.ndarray]:
    """As if every right form had one log-probability, in two tokens, and every wrong one another."""
    return [
        np.array([-1.0, value + 1.0])
        for context in CONTEXTS
        for value in (right, *[wrong] * len(context.wrong))
    ]


def test_right_forms_that_are_likelier_win_everywhere() -> None:
    found = score_contractions(scores(-2.0, -5.0))
    assert found.share == 1.0 and found.wrong() == []
    assert found.log_odds == pytest.approx(3.0 - np.log(2.0))


def test_one_likelier_wrong_form_loses_its_context() -> None:
    values = scores(-2.0, -5.0)
    values[2] = np.array([-1.0])
    found = score_contractions(values)
    assert found.share == (len(CONTEXTS) - 1) / len(CONTEXTS)
    assert found.wrong() == [CONTEXTS[0].before + CONTEXTS[0].right]


def test_what_cannot_be_written_at_all_is_no_win() -> None:
    assert score_contractions(scores(-np.inf, -np.inf)).share == 0.0
    assert score_contractions(scores(-np.inf, -3.0)).share == 0.0
    assert score_contractions(scores(-3.0, -np.inf)).share == 1.0


def test_samples_hold_the_whole_strings(dense) -> None:
    tokenizer = Tokenizer.from_folder(dense)
    samples = contraction_samples(tokenizer, 2)
    assert len(samples) == sum(1 + len(context.wrong) for context in CONTEXTS)
    assert tokenizer.decode(samples[0].tokens.tolist()) == CONTEXTS[0].before + CONTEXTS[0].right
    assert tokenizer.decode(samples[1].tokens.tolist()) == CONTEXTS[0].before + CONTEXTS[0].wrong[0]
    assert all(each.sample.tokens[0] == 2 and each.first == 1 for each in samples)


def test_the_trained_model_knows_its_contractions_before_and_after_mobile(dense, mobile) -> None:
    found = evaluate(mobile, dense, (), skip=("repetition", "tasks", "images", "divergence"))
    assert found.contractions is not None and found.contractions.share == 1.0
    assert found.contractions.log_odds > 3.0


def test_impossible_forms_are_found_in_text_and_possible_ones_are_not() -> None:
    bad = "I's here, they's late, you’m right. He'm and it're; We's too."
    assert impossible_forms([bad]) == ["I's", "they's", "you’m", "He'm", "it're", "We's"]
    good = "I'm, you're, it's, she’s, they're, we've, I'd; dot the i's; AI's rise; Mississippi's."
    assert impossible_forms([good]) == []
