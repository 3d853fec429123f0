from __future__ import annotations

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from fake_model import chi_square_limit

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.samplers import make_sampler

SETTINGS = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
    for t, k, p, m in itertools.product((0.5, 1.0, 2.0), (0, 1, 7, 1000), (1.0, 0.8, 0.1), (0.0, 0.05, 1.0))
]


def random_logprobs(rows: int = 3, size: int = 50, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(rows, size)) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def filtered_by_hand(logprobs: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float):
    """One row at a time, in float64, straight from the definitions."""
    out = np.zeros_like(logprobs)
    for row, line in enumerate(logprobs):
        order = sorted(range(len(line)), key=lambda i: -line[i])
        if top_k:
            order = order[:top_k]
        shares = np.exp(line[order]) / np.exp(line[order]).sum()
        nucleus = next(n for n in range(1, len(order) + 1) if shares[:n].sum() >= top_p or n == len(order))
        order = [
            i for i in order[:nucleus] if math.exp(line[i]) >= min_p * math.exp(line[order[0]]) * (1 - 1e-6)
        ]
        weights = np.exp((line[order] - line[order[0]]) / temperature)
        out[row, order] = weights / weights.sum()
    return out


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_filters_agree_with_their_definitions_in_float64(settings: dict[str, float]) -> None:
    logprobs = random_logprobs()
    expected = filtered_by_hand(logprobs, **settings)
    got = np.asarray(make_sampler(**settings, seed=1).distribution(mx.array(logprobs.astype(np.float32))))
    assert ((got > 0) == (expected > 0)).all()
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_zero_temperature_takes_the_most_likely_row() -> None:
    logprobs = random_logprobs()
    sampler = make_sampler()
    assert sampler(mx.array(logprobs)).tolist() == logprobs.argmax(-1).tolist()
    assert (
        np.asarray(sampler.distribution(mx.array(logprobs))).argmax(-1).tolist()
        == logprobs.argmax(-1).tolist()
    )


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    logprobs = mx.array(random_logprobs().astype(np.float32))
    sampler = make_sampler(temperature=1e-30, seed=0)
    assert sampler(logprobs).tolist() == make_sampler()(logprobs).tolist()
    assert not np.isnan(np.asarray(sampler.distribution(logprobs))).any()


def test_top_p_sees_what_top_k_left() -> None:
    # Of the whole, 0.5 + 0.2 reach 0.7; of the first two, 0.5 / 0.7 alone does.
    logprobs = mx.log(mx.array([[0.5, 0.2, 0.2, 0.1]]))
    both = np.asarray(make_sampler(1.0, top_k=3, top_p=0.5, seed=0).distribution(logprobs))[0]
    assert (both > 0).tolist() == [True, False, False, False]
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    both = np.asarray(make_sampler(1.0, top_k=2, top_p=0.6, seed=0).distribution(logprobs))[0]
    alone = np.asarray(make_sampler(1.0, top_p=0.6, seed=0).distribution(logprobs))[0]
    assert (both > 0).sum() == 1
    assert (alone > 0).sum() == 2


def test_rows_that_tie_with_the_last_kept_one_stay() -> None:
    logprobs = mx.log(mx.array([[0.4, 0.2, 0.2, 0.2]]))
    assert (np.asarray(make_sampler(1.0, top_k=2, seed=0).distribution(logprobs)) > 0).all()


def test_drawn_rows_follow_the_distribution() -> None:
    logprobs = mx.array(random_logprobs(rows=1, size=20).astype(np.float32))
    sampler = make_sampler(temperature=1.3, top_k=12, min_p=0.02, seed=5)
    count = 20_000
    drawn = np.asarray(sampler(mx.broadcast_to(logprobs, (count, 20))))
    expected = np.asarray(sampler.distribution(logprobs))[0].astype(np.float64) * count
    seen = np.bincount(drawn, minlength=20)
    possible = expected > 0
    assert seen[~possible].sum() == 0
    statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi_square_limit(possible.sum() - 1)


def test_a_seed_gives_the_same_rows_and_leaves_the_global_state_alone() -> None:
    logprobs = mx.array(random_logprobs().astype(np.float32))
    before = [np.array(part) for part in mx.random.state]

    def draws(seed: int | None) -> list[list[int]]:
        sampler = make_sampler(1.0, seed=seed)
        return [sampler(logprobs).tolist() for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)
    assert len({str(step) for step in draws(3)}) > 1
    assert all((np.array(a) == b).all() for a, b in zip(mx.random.state, before, strict=True))


def test_a_row_of_minus_infinity_is_never_drawn() -> None:
    logprobs = mx.array([[-math.inf, 0.0, -math.inf, -math.inf]])
    for settings in SETTINGS:
        assert make_sampler(**settings, seed=2)(mx.broadcast_to(logprobs, (200, 4))).tolist() == [1] * 200


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_a_setting_outside_its_range_is_one_clear_error(settings: dict[str, float]) -> None:
    with pytest.raises(SurgeryError, match=r"\[sampler\] need a .*, got"):
        make_sampler(**settings)
