from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.stopping import StopStrings


def shown(stop: StopStrings, pieces: list[str]) -> list[str]:
    return [*(stop.add(piece) for piece in pieces), stop.finish()]


def test_text_before_a_stop_string_is_shown_and_nothing_after() -> None:
    stop = StopStrings(["STOP"])
    assert shown(stop, ["one S", "T", "OP two", " three"]) == ["one ", "", "", "", ""]
    assert stop.found == "STOP"


def test_a_partial_match_is_held_back_until_it_is_decided() -> None:
    stop = StopStrings(["abcd"])
    assert shown(stop, ["xab", "c", "e", "ab"]) == ["x", "", "abce", "", "ab"]
    assert stop.found is None


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert shown(StopStrings(), ["a", "b"]) == ["a", "b", ""]


def test_one_string_counts_as_one_stop_string() -> None:
    assert StopStrings("ab").strings == ("ab",)


def test_the_first_string_to_be_complete_decides() -> None:
    stop = StopStrings(["abcd", "bc"])
    assert "".join(shown(stop, ["abcd"])) == "a"
    assert stop.found == "bc"


@pytest.mark.parametrize("strings", [[""], ["a", ""], [3]])
def test_an_empty_stop_string_is_refused(strings: list[str]) -> None:
    with pytest.raises(SurgeryError, match=r"\[generate\] need stop strings of at least one character"):
        StopStrings(strings)


def by_definition(text: str, strings: list[str]) -> str:
    """Read character by character until some string ends here; cut the longest such string off."""
    for end in range(len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=5), max_size=8),
)
def test_how_the_text_is_cut_into_pieces_changes_nothing(strings: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    stop = StopStrings(strings)
    got = shown(stop, pieces)
    assert "".join(got) == by_definition(text, strings)
    assert (stop.found is not None) == any(string in text for string in strings)
    # What is shown at any time can no longer be part of a stop string.
    seen = ""
    for piece in got:
        seen += piece
        assert by_definition(text, strings).startswith(seen)


@given(st.lists(st.text("ab", min_size=2, max_size=4), min_size=1, max_size=3), st.text("abc", max_size=12))
def test_no_more_is_held_back_than_could_become_a_stop_string(strings: list[str], text: str) -> None:
    stop = StopStrings(strings)
    seen = "".join(stop.add(character) for character in text)
    if stop.found is None:
        held = text[len(seen) :]
        assert not held or any(string.startswith(held) for string in strings)
