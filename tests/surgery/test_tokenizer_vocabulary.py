"""Selecting tokens: passes, closure under merges, filling, refusals, and the token map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import (
    IMAGE,
    SPECIAL,
    encoded,
    mask_of,
    random_keep,
    small_document,
    small_reference,
    small_tokenizer,
    surfaces,
)
from tokenizers import Tokenizer

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.keep_sets import KeepPass, keep_pass
from gemma_surgery.surgery.merge_closure import atomic, close_under_merges, kept_merges, unreachable
from gemma_surgery.surgery.pruned_tokenizer import pruned
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.vocabulary import PassRow, fill, kept_ids, problems, select, token_map

NUM_IDS = small_tokenizer().num_ids


def built_alone(reference: Tokenizer, tokenizer: TokenizerFile) -> set[int]:
    """Ids of the merged tokens that encoding their own text gives."""
    single = atomic(tokenizer)
    return {
        token_id
        for token_id, token in enumerate(tokenizer.tokens)
        if token is not None
        and not single[token_id]
        and reference.encode(token, add_special_tokens=False).ids == [token_id]
    }


ORIGINAL = built_alone(small_reference(), small_tokenizer())


def test_the_small_tokenizer_has_tokens_to_close() -> None:
    assert len(ORIGINAL) > 50


def test_rows_of_the_table_count_matches_and_news() -> None:
    tokenizer = small_tokenizer()
    a, b = mask_of(tokenizer, "q", "z", "t"), mask_of(tokenizer, "t", "h", "th")
    selection = select(tokenizer, [KeepPass("a", a), KeepPass("b", b), KeepPass("again", b)])
    expected = (PassRow("a", 3, 3), PassRow("b", 3, 2), PassRow("again", 3, 0), PassRow("closure", 0, 0))
    assert selection.rows == expected
    assert (selection.num_kept, selection.compact_rows, selection.num_merges) == (5, 6, 1)


def test_closure_adds_the_derivation_of_a_token_and_no_more() -> None:
    tokenizer = small_tokenizer()
    selection = select(tokenizer, [KeepPass("x", mask_of(tokenizer, "▁café"))])
    assert selection.rows[-1] == PassRow("closure", selection.num_kept - 1, selection.num_kept - 1)
    added = surfaces(tokenizer, selection.keep)
    # caf is ranked before ▁c would be, so the word is built from its inside.
    assert added == {"▁café", "▁", "c", "a", "f", "é", "af", "caf", "▁caf"}


def test_order_of_passes_does_not_change_the_selection() -> None:
    tokenizer = small_tokenizer()
    passes = [keep_pass(tokenizer, name) for name in ("ascii", "latin", "emoji", "typographic")]
    forward, backward = select(tokenizer, passes), select(tokenizer, passes[::-1])
    np.testing.assert_array_equal(forward.keep, backward.keep)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.05, 0.2, 0.5, 0.8, 0.95]))
def test_unreachable_agrees_with_the_tokenizers_library(seed: int, share: float) -> None:
    tokenizer, keep = small_tokenizer(), random_keep(seed, share)
    cut = Tokenizer.from_str(pruned(tokenizer, keep).decode())
    lost = [i for i in sorted(ORIGINAL) if keep[i] and i not in built_alone(cut, tokenizer)]
    assert unreachable(tokenizer, keep).tolist() == lost


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.05, 0.2, 0.5, 0.8]))
def test_closed_sets_build_every_token(seed: int, share: float) -> None:
    tokenizer, keep = small_tokenizer(), random_keep(seed, share)
    closed = close_under_merges(tokenizer, keep)
    assert (closed >= keep).all()
    cut = Tokenizer.from_str(pruned(tokenizer, closed).decode())
    assert built_alone(cut, tokenizer) == {i for i in ORIGINAL if closed[i]}
    assert unreachable(tokenizer, closed).size == 0
    np.testing.assert_array_equal(close_under_merges(tokenizer, closed), closed)


def test_closure_of_no_or_all_tokens_changes_nothing() -> None:
    tokenizer = small_tokenizer()
    for keep in (np.zeros(NUM_IDS, bool), np.ones(NUM_IDS, bool)):
        np.testing.assert_array_equal(close_under_merges(tokenizer, keep), keep)
    assert kept_merges(tokenizer, np.ones(NUM_IDS, bool)).all()


def test_a_token_that_no_text_gives_needs_no_closure() -> None:
    document = small_document()
    model = document["model"]
    model["vocab"]["th▁"] = NUM_IDS
    # t + h comes first, so h▁ is never there to meet t.
    model["vocab"]["h▁"] = NUM_IDS + 1
    model["merges"] += [["h", "▁"], ["t", "h▁"]]
    tokenizer = TokenizerFile.parse(encoded(document), "t")
    assert Tokenizer.from_str(encoded(document).decode()).encode("th▁").ids[1:] != [NUM_IDS]
    keep = mask_of(tokenizer, "th▁")
    np.testing.assert_array_equal(close_under_merges(tokenizer, keep), keep)
    assert unreachable(tokenizer, keep).size == 0


def test_filling_takes_the_lowest_ids_that_can_be_built() -> None:
    tokenizer = small_tokenizer()
    keep = select(tokenizer, [keep_pass(tokenizer, "ascii")]).keep
    filled = select(tokenizer, [keep_pass(tokenizer, "ascii")], fill_rows=int(keep.sum()) + 6)
    assert filled.compact_rows == int(keep.sum()) + 6
    assert filled.rows[-1] == PassRow("fill", 5, 5)
    assert surfaces(tokenizer, filled.keep & ~keep) == {"\n", "\n\n", "\n\n\n", "\t", "\t\t"}
    everything = fill(tokenizer, keep, NUM_IDS + 1 - tokenizer.unused_ids.size)
    np.testing.assert_array_equal(everything, keep_pass(tokenizer, "all").mask)


@pytest.mark.parametrize("extra", range(0, 60, 7))
def test_filling_keeps_the_set_closed(extra: int) -> None:
    tokenizer = small_tokenizer()
    keep = close_under_merges(tokenizer, random_keep(extra, 0.3))
    filled = fill(tokenizer, keep, int(keep.sum()) + 1 + extra)
    assert filled.sum() == keep.sum() + extra
    assert not filled[tokenizer.unused_ids[~keep[tokenizer.unused_ids]]].any()
    assert unreachable(tokenizer, filled).size == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [(10, "need at least .* rows .* got `fill_rows` = 10"), (5000, "need 5000 rows, got 6")],
)
def test_impossible_row_counts_are_refused(rows: int, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        select(small_tokenizer(), [keep_pass(small_tokenizer(), "ascii")], rows)


def test_a_workable_set_has_no_problems() -> None:
    tokenizer = small_tokenizer()
    for names in (("ascii", "typographic"), ("all",), ("special", "typographic")):
        assert problems(tokenizer, select(tokenizer, [keep_pass(tokenizer, n) for n in names]).keep) == []


@pytest.mark.parametrize(
    ("missing", "message", "hint"),
    [
        ("<bos>", 'the special tokens, which frame every prompt, but `"<bos>"` would', "add `special`"),
        (IMAGE, 'special tokens, .* but `"<image_soft_token>"` would', "add `special`"),
        ("<0x41>", 'all byte tokens, .* but `"<0x41>"` would be pruned', "add `special`"),
        ("\n\n", r'newline tokens, .* but `"\\n\\n"` would be pruned', "add `typographic`"),
    ],
)
def test_sets_that_break_the_model_are_refused(missing: str, message: str, hint: str) -> None:
    tokenizer = small_tokenizer()
    (problem,) = problems(tokenizer, ~mask_of(tokenizer, missing))
    with pytest.raises(SurgeryError, match=message):
        raise problem
    assert problem.hint == hint


def test_all_problems_are_reported_together() -> None:
    found = problems(small_tokenizer(), np.zeros(NUM_IDS, bool))
    assert len(found) == 3
    assert f"and {len(SPECIAL) + 1 - 4} more would be pruned" in found[0].message
    assert [p.hint for p in problems(small_tokenizer(), keep_pass(small_tokenizer(), "ascii").mask)] == [
        "add `typographic`"
    ]


def test_pruning_without_byte_fallback_is_refused() -> None:
    document = small_document()
    document["model"]["byte_fallback"] = False
    tokenizer = TokenizerFile.parse(encoded(document), "t")
    selection = select(tokenizer, [keep_pass(tokenizer, n) for n in ("ascii", "typographic")])
    (problem,) = problems(tokenizer, selection.keep)
    assert "pruning needs `byte_fallback`" in problem.message
    assert problems(tokenizer, tokenizer.exists) == []


def test_token_map_is_equation_one() -> None:
    keep = np.array([False, True, True, False, True])
    assert token_map(keep, 8).tolist() == [0, 1, 2, 0, 3, 0, 0, 0]
    assert kept_ids(keep).tolist() == [-1, 1, 2, 4]
    assert token_map(keep, 8).dtype == kept_ids(keep).dtype == np.int32


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 9))
def test_token_map_and_kept_ids_are_inverse(bits: list[bool], padding: int) -> None:
    keep = np.array(bits, bool)
    mapping, rows = token_map(keep, keep.size + padding), kept_ids(keep)
    assert mapping.size == keep.size + padding
    assert rows.size == keep.sum() + 1
    np.testing.assert_array_equal(mapping[rows[1:]], np.arange(1, rows.size))
    assert (mapping > 0).sum() == keep.sum()
