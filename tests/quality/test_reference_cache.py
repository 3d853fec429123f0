"""A cached reference gives a lower bound of the divergence, and is never mistaken for another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_sides import given_side

from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.divergence import Side, compare, log_softmax
from gemma_surgery.quality.evaluation import evaluate
from gemma_surgery.quality.reference_cache import (
    compare_cached,
    measure_reference,
    read_cache,
    write_cache,
)
from gemma_surgery.quality.vocabulary import NO_PIECE, Credit, ModelTokens, first_pieces

TALK = ("contractions", "repetition", "tasks", "images")
POSITIONS, ROWS = 97, 40


def two_sides(noise: float = 0.5):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(POSITIONS, ROWS)).astype(np.float32) * 3
    other = (base + noise * rng.normal(size=base.shape)).astype(np.float32)
    right = rng.integers(0, ROWS, POSITIONS)
    mine, its = given_side(base, right), given_side(other, right)
    return mine, its, Credit(mine.tokens, its.tokens, first_pieces(mine.tokens, its.tokens))


@pytest.mark.parametrize("k", [1, 4, 16, 30])
def test_divergence_from_the_cache_is_a_lower_bound_at_every_position(k: int) -> None:
    mine, its, credit = two_sides()
    exact = compare(mine, its, credit)
    found = compare_cached(measure_reference(mine, k), (mine.tokens, mine.scored), its, credit)
    assert (found.kld <= exact.kld + 1e-6).all()
    assert (found.kld < 0.999 * exact.kld).any()
    assert (found.same_top == exact.same_top).all()
    assert found.reference_logprob == pytest.approx(exact.reference_logprob, rel=1e-6)
    assert found.candidate_logprob.tolist() == exact.candidate_logprob.tolist()


def shared_pieces(num_lost: int) -> tuple[Side, np.ndarray, np.ndarray]:
    """A reference of which 25 tokens are kept; the others begin as one of three of them, or are lost."""
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(ROWS, 25, replace=False))
    pieces = np.full(ROWS, NO_PIECE, np.int32)
    pieces[kept] = kept
    others = np.setdiff1d(np.arange(ROWS), kept)[num_lost:]
    pieces[others] = kept[rng.integers(0, 3, len(others))]
    return two_sides()[0], kept, pieces


@pytest.mark.parametrize("k", [1, 4, 16, ROWS])
def test_a_candidate_that_writes_the_pieces_as_often_stays_at_nothing(k: int) -> None:
    mine, kept, pieces = shared_pieces(0)
    rows = mine.tokens, ModelTokens(mine.tokens.tokenizer, kept.astype(np.int32), ROWS)
    carried, _ = Credit(*rows, pieces).carry(np.exp(log_softmax(mine.head.table.astype(np.float64))))
    its = given_side(np.log(carried).astype(np.float32), mine.scored[0].tokens, kept)
    credit = Credit(mine.tokens, its.tokens, pieces)
    found = compare_cached(measure_reference(mine, k), (mine.tokens, mine.scored), its, credit)
    assert found.kld.max() < 1e-5


@pytest.mark.parametrize("k", [1, 4, 16, ROWS])
def test_the_bound_holds_where_tokens_share_a_piece_and_some_are_lost(k: int) -> None:
    mine, kept, pieces = shared_pieces(2)
    logits = np.random.default_rng(1).normal(size=(POSITIONS, len(kept))).astype(np.float32)
    its = given_side(logits, mine.scored[0].tokens, kept)
    credit = Credit(mine.tokens, its.tokens, pieces)
    exact = compare(mine, its, credit)
    found = compare_cached(measure_reference(mine, k), (mine.tokens, mine.scored), its, credit)
    # What the lost ones held in the tail is not known to the cache.
    known = exact.lost - found.lost < 1e-6
    assert (found.kld[known] <= exact.kld[known] + 1e-6).all()
    assert found.kld.mean() <= exact.kld.mean() and found.kld.min() >= 0.0
    if k == ROWS:
        assert known.all() and found.lost == pytest.approx(exact.lost, rel=1e-5)


def test_more_tokens_make_a_closer_bound_and_all_of_them_the_divergence() -> None:
    mine, its, credit = two_sides()
    exact = compare(mine, its, credit).kld.mean()
    bounds = [
        compare_cached(measure_reference(mine, k), (mine.tokens, mine.scored), its, credit).kld.mean()
        for k in (1, 4, 16, ROWS)
    ]
    assert bounds == sorted(bounds) and bounds[0] < 0.9 * exact
    assert bounds[-1] == pytest.approx(exact, rel=1e-5)


def test_the_bound_holds_for_a_pruned_vocabulary(mobile, dense, passages, tmp_path) -> None:
    exact = evaluate(mobile, dense, passages, skip=TALK).divergence
    cached = evaluate(mobile, dense, passages, skip=TALK, cache=tmp_path / "cache").divergence
    assert exact is not None and cached is not None
    assert cached.is_lower_bound and not exact.is_lower_bound
    assert 0.5 * exact.kld.mean.value < cached.kld.mean.value <= exact.kld.mean.value
    assert cached.kld.maximum <= exact.kld.maximum
    assert cached.same_top == exact.same_top
    assert cached.perplexities.reference.value == pytest.approx(exact.perplexities.reference.value, rel=1e-6)


def test_a_second_run_takes_the_cache_and_gives_the_same_numbers(mobile, dense, passages, tmp_path) -> None:
    cache, phases = tmp_path / "cache", []

    def measure() -> dict:
        found = evaluate(mobile, dense, passages[:6], skip=TALK[1:], cache=cache).to_json()
        phases.append(list(found.pop("seconds")))
        return found

    assert measure() == measure()
    assert "reference" in phases[0] and "reference" not in phases[1]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_file_holds_what_was_measured(tmp_path: Path) -> None:
    mine, _, _ = two_sides()
    written = measure_reference(mine, 5)
    assert written.ids.shape == written.logprobs.shape == (POSITIONS, 5)
    p = np.exp(written.logprobs.astype(np.float64)).sum(axis=1) + written.tail
    assert p == pytest.approx(np.ones(POSITIONS), abs=1e-6)
    write_cache(tmp_path / "cache", "key", written)
    read = read_cache(tmp_path / "cache", "key", POSITIONS)
    for name, values in vars(written).items():
        assert getattr(read, name).tobytes() == values.tobytes(), name


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"reference": demo_model_path("4bit")}, "checkpoint"),
        ({"passages": 5}, "data_sha256"),
        ({"max_tokens": 20}, "max_tokens"),
        ({"chat": False, "max_tokens": 64}, "chat_format"),
    ],
)
def test_a_cache_of_something_else_is_refused(mobile, dense, passages, tmp_path, change, difference) -> None:
    options = {"reference": dense, "passages": 6, "cache": tmp_path / "cache", "skip": TALK}
    evaluate(mobile, **{**options, "passages": passages[:6]})
    before = options["cache"].read_bytes()
    options |= change
    with pytest.raises(SurgeryError, match="need a cache of this reference") as raised:
        evaluate(mobile, **{**options, "passages": passages[: options["passages"]]})
    assert difference in str(raised.value)
    assert options["cache"].read_bytes() == before


def test_other_files_and_damaged_ones_are_refused(tmp_path: Path, dense: Path) -> None:
    mine, _, _ = two_sides()
    path = tmp_path / "cache"
    write_cache(path, json.dumps({"a": 1}), measure_reference(mine, 5))
    with pytest.raises(SurgeryError, match="another a in"):
        read_cache(path, json.dumps({"a": 2}), POSITIONS)
    with pytest.raises(SurgeryError, match=r"need I32 for 5 positions, got I32 \[97, 5\] in `ids`"):
        read_cache(path, json.dumps({"a": 1}), 5)
    with pytest.raises(SurgeryError, match="got another kind of file"):
        read_cache(dense / "model.safetensors", json.dumps({"a": 1}), POSITIONS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SurgeryError):
        read_cache(path, json.dumps({"a": 1}), POSITIONS)
    with pytest.raises(SurgeryError, match="cannot write"):
        write_cache(tmp_path / "no" / "cache", "key", measure_reference(mine, 5))
