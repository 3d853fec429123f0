from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from fake_model import A, FakeModel

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.logits_processors import LogitBias, RepetitionPenalty, make_logits_processors

LOGITS = np.array([[0.5, -1.0, 2.0, 0.0, 3.0, -2.0, 1.0, 4.0, -4.0, 0.25, 1.5, -0.5]], np.float32)


def test_the_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    penalty = RepetitionPenalty(FakeModel(), 2.0)
    got = np.asarray(penalty([4, 5, 4, 4], mx.array(LOGITS)))
    expected = LOGITS.copy()
    expected[0, 4], expected[0, 5] = 1.5, -4.0
    assert (got == expected).all()


def test_only_the_last_tokens_are_penalised() -> None:
    model = FakeModel()
    got = np.asarray(RepetitionPenalty(model, 2.0, context_size=2)([4, 7, 5], mx.array(LOGITS)))
    assert (got[0, [4, 7, 5]] == [3.0, 2.0, -4.0]).all()
    everything = np.asarray(RepetitionPenalty(model, 2.0, context_size=None)([4, 7, 5], mx.array(LOGITS)))
    assert (everything[0, [4, 7, 5]] == [1.5, 2.0, -4.0]).all()


def test_no_tokens_mean_no_penalty() -> None:
    assert (np.asarray(RepetitionPenalty(FakeModel(), 2.0)([], mx.array(LOGITS))) == LOGITS).all()


def test_ids_are_mapped_to_the_rows_of_a_pruned_vocabulary() -> None:
    model = FakeModel(kept=[1, 4, 6])
    logits = mx.array([[-math.inf, 1.0, 2.0, 3.0]])
    got = np.asarray(RepetitionPenalty(model, 2.0)([4, 5, 0], logits))
    assert got.tolist() == [[-math.inf, 1.0, 1.0, 3.0]]
    biased = np.asarray(LogitBias(model, {6: 0.5, 5: 9.0, 400: 1.0})([], logits))
    assert biased.tolist() == [[-math.inf, 1.0, 2.0, 3.5]]


def test_every_row_of_a_batch_is_penalised() -> None:
    logits = mx.array(np.repeat(LOGITS, 3, axis=0))
    got = np.asarray(RepetitionPenalty(FakeModel(), 2.0)([4], logits))
    assert got[:, 4].tolist() == [1.5, 1.5, 1.5]


def test_tokens_beyond_the_table_of_a_smaller_model_are_ignored() -> None:
    model = FakeModel(num_ids=8)
    got = np.asarray(RepetitionPenalty(model, 2.0)([10, 4], mx.array(LOGITS[:, :8])))
    assert got[0, 4] == 1.5
    assert (np.delete(got[0], 4) == np.delete(LOGITS[0, :8], 4)).all()


def test_a_bias_of_minus_infinity_forbids_a_token() -> None:
    got = np.asarray(LogitBias(FakeModel(), {A: -math.inf})([], mx.array(LOGITS)))
    assert got[0, A] == -math.inf
    assert np.isfinite(np.delete(got[0], A)).all()


def test_only_what_is_asked_for_is_made() -> None:
    model = FakeModel()
    assert make_logits_processors(model) == []
    assert make_logits_processors(model, repetition_penalty=1.0) == []
    kinds = [type(p) for p in make_logits_processors(model, {A: 1.0}, 1.1, 5)]
    assert kinds == [LogitBias, RepetitionPenalty]


@pytest.mark.parametrize("penalty", [0, -1, math.inf, math.nan])
def test_a_penalty_that_is_no_factor_is_refused(penalty: float) -> None:
    with pytest.raises(SurgeryError, match="need a repetition penalty above 0"):
        RepetitionPenalty(FakeModel(), penalty)


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(SurgeryError, match="need a repetition context of 1 token or more, got 0"):
        RepetitionPenalty(FakeModel(), 1.1, 0)


@pytest.mark.parametrize("bias", [{A: math.nan}, {A: math.inf}, {-1: 1.0}])
def test_a_bias_that_cannot_be_added_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(SurgeryError, match="need token ids of 0 or more with finite biases"):
        LogitBias(FakeModel(), bias)
