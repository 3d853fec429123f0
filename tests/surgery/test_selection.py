"""Composing selections is the same as applying them one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Selection, TopRanked

RANKING = Ranking(("a",), ("b",))


def no_scores(ranking: Ranking) -> np.ndarray:
    raise AssertionError(ranking)


@given(st.data())
def test_composed_takes_equal_takes_one_by_one(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    values = np.arange(1, count + 1)
    selection = Selection(count)
    for _ in range(data.draw(st.integers(0, 4))):
        indices = np.array(data.draw(st.lists(st.integers(-1, selection.count - 1), max_size=50)), np.int32)
        values = np.where(indices >= 0, values[np.maximum(indices, 0)] if len(values) else 0, 0)
        selection = selection.take(indices)
        assert selection.count == len(indices)
        if not len(indices):
            return
    resolved = selection.resolve(no_scores)
    source = np.arange(1, count + 1)
    got = source if resolved is None else np.where(resolved >= 0, source[np.maximum(resolved, 0)], 0)
    assert np.array_equal(got, values)


def test_taking_everything_in_place_changes_nothing() -> None:
    assert Selection(5).take(range(5)).is_whole


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="outside of 5 entries"):
        Selection(5).take([0, 5])


def test_top_ranked_keeps_the_best_in_order_and_the_earlier_of_equals() -> None:
    scores = np.array([1.0, 5.0, 5.0, 0.0, 5.0])
    kept = Selection(5).take_top(TopRanked(2, RANKING)).resolve(lambda _: scores)
    assert kept is not None and kept.tolist() == [1, 2]


def test_top_ranked_after_a_take_ranks_what_is_left() -> None:
    scores = np.array([9.0, 1.0, 8.0, 7.0])
    selection = Selection(4).take([1, 2, 3]).take_top(TopRanked(2, RANKING)).take([1, 0, -1])
    kept = selection.resolve(lambda _: scores)
    assert kept is not None and kept.tolist() == [3, 2, -1]


def test_top_ranked_blocks_move_whole() -> None:
    scores = np.array([0.0, 0.0, 3.0, 3.0, 1.0, 1.0])
    kept = Selection(6).take_top(TopRanked(4, RANKING, block=2)).resolve(lambda _: scores)
    assert kept is not None and kept.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("indices", "whole"),
    [
        ([4, 5, 6, 7, 0, 1, 2, 3], True),
        ([0, 1, 2, 3, -1, -1, -1, -1], True),
        ([1, 2, 3, 4], False),
        ([0, 1, 2], False),
        ([0, 1, 3, 2], False),
        ([0, 1, 2, -1], False),
    ],
)
def test_whole_blocks_are_aligned_runs_or_zeros(indices: list[int], whole: bool) -> None:
    assert Selection(8).take(indices).whole_blocks(4) is whole


def test_the_plan_spells_out_few_runs_and_hashes_many() -> None:
    assert Selection(8).take([2, 3, -1, -1, 6]).to_json() == [{"count": 5, "runs": [[2, 4], [-1, 2], [6, 7]]}]
    many = Selection(1000).take(range(0, 1000, 2)).to_json()
    assert isinstance(many, list) and isinstance(many[0], dict) and set(many[0]) == {"count", "sha256"}
