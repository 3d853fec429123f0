"""The figures are those of llama.cpp's report, and of nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_sides import given_side
from llama_report import report

from gemma_surgery.quality import divergence
from gemma_surgery.quality.divergence import compare, token_logprobs
from gemma_surgery.quality.statistics import (
    kl_divergences,
    mean,
    percentile,
    perplexities,
    same_top,
    token_probabilities,
)
from gemma_surgery.quality.vocabulary import Credit, first_pieces

POSITIONS, ROWS = 301, 37


def logits_of_two_models(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(POSITIONS, ROWS)).astype(np.float32) * 3
    other = (base + rng.normal(size=base.shape) * noise).astype(np.float32)
    return base, other, rng.integers(0, ROWS, POSITIONS)


def measured(base: np.ndarray, other: np.ndarray, right: np.ndarray) -> dict[str, float]:
    mine, its = given_side(base, right), given_side(other, right)
    found = compare(mine, its, Credit(mine.tokens, its.tokens, first_pieces(mine.tokens, its.tokens)))
    kld = kl_divergences(found.kld)
    ppl = perplexities(found.reference_logprob, found.candidate_logprob)
    tokens = token_probabilities(found.reference_logprob, found.candidate_logprob)
    top = same_top(found.same_top)
    values = {
        "kld": kld.mean.value, "kld_error": kld.mean.stderr, "kld_max": kld.maximum, "kld_min": kld.minimum,
        "ppl": ppl.candidate.value, "ppl_error": ppl.candidate.stderr,
        "base": ppl.reference.value, "base_error": ppl.reference.stderr, "correlation": ppl.correlation,
        "log_ratio": ppl.log_ratio.value, "log_ratio_error": ppl.log_ratio.stderr,
        "ratio": ppl.ratio.value, "ratio_error": ppl.ratio.stderr,
        "difference": ppl.difference.value, "difference_error": ppl.difference.stderr,
        "delta_p": tokens.delta_p.mean.value, "delta_p_error": tokens.delta_p.mean.stderr,
        "delta_p_max": tokens.delta_p.maximum, "delta_p_min": tokens.delta_p.minimum,
        "rms": tokens.rms.value, "rms_error": tokens.rms.stderr,
        "same_top": top.value, "same_top_error": top.stderr,
    }  # fmt: skip
    values |= {f"kld_{percent:g}": value for percent, value in kld.percentiles.items()}
    return values | {f"delta_p_{percent:g}": value for percent, value in tokens.delta_p.percentiles.items()}


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_every_figure_of_llama_cpps_report_agrees_to_a_millionth(noise: float) -> None:
    base, other, right = logits_of_two_models(noise)
    expected = report(base.tolist(), other.tolist(), right.tolist())
    found = measured(base, other, right)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_tiles_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    models = logits_of_two_models(0.3)
    whole = measured(*models)
    monkeypatch.setattr(divergence, "TILE_BYTES", 4 * 2 * ROWS * 7)
    monkeypatch.setattr(divergence, "BLOCK_VALUES", 3 * ROWS)
    assert measured(*models) == whole


def test_logits_are_never_made_for_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other, right = logits_of_two_models(0.3)
    mine, its = given_side(base, right), given_side(other, right)
    monkeypatch.setattr(divergence, "TILE_BYTES", 4 * 2 * ROWS * 7 + 3)
    compare(mine, its, Credit(mine.tokens, its.tokens, first_pieces(mine.tokens, its.tokens)))
    assert mine.head.most_positions == its.head.most_positions == 7
    token_logprobs(mine)
    assert mine.head.most_positions == 14


def test_a_model_against_itself_diverges_by_exactly_nothing() -> None:
    base, _, right = logits_of_two_models(0.0)
    found = measured(base, base, right)
    assert {found[name] for name in found if name.startswith("kld")} == {0.0}
    assert found["same_top"] == 1.0 and found["ratio"] == 1.0 and found["rms"] == 0.0
    assert found["difference_error"] == 0.0 and found["correlation"] == pytest.approx(1.0)


def test_rows_of_no_token_count_nothing() -> None:
    base, other, right = logits_of_two_models(0.3)
    expected = measured(base, other, right)
    nothing = np.full((POSITIONS, 1), -np.inf, np.float32)
    widened = measured(np.hstack([base, nothing]), np.hstack([other, nothing]), right)
    assert widened == pytest.approx(expected)


def test_percentiles_lie_between_the_values_linearly() -> None:
    ordered = np.array([1.0, 2.0, 4.0])
    assert [percentile(ordered, percent) for percent in (0, 25, 50, 75, 100)] == [1.0, 1.5, 2.0, 3.0, 4.0]


def test_few_positions_have_no_error_bar() -> None:
    assert mean(np.arange(10.0)).stderr == 0.0
    assert mean(np.arange(11.0)).stderr == pytest.approx(1.0)
    assert math.isnan(same_top(np.empty(0, bool)).value)
