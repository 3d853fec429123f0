"""Two tokenizations of one text meet where both begin a token."""

from __future__ import annotations

from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.quality.alignment import align, spell


def pieces(text: str) -> list[bytes]:
    return [piece.encode() for piece in text.split("|")]


def test_equal_tokens_meet_everywhere() -> None:
    found = align(pieces("I|'m| here"), pieces("I|'m| here"))
    assert found.reference.tolist() == found.candidate.tolist() == [0, 1, 2, 3]
    assert len(found) == 3 and found.unmatched == (0, 0)


def test_a_token_written_in_pieces_is_one_unit() -> None:
    found = align(pieces("The| cat|s"), pieces("The| |c|at|s"))
    assert found.reference.tolist() == [0, 1, 2, 3]
    assert found.candidate.tolist() == [0, 1, 4, 5]
    assert found.unmatched == (0, 2)


def test_crossing_tokens_meet_only_around_them() -> None:
    found = align(pieces("a|bcd|e"), pieces("ab|cd|e"))
    assert found.reference.tolist() == [0, 2, 3] and found.candidate.tolist() == [0, 2, 3]
    assert found.unmatched == (1, 1)


def test_a_text_cut_earlier_is_compared_up_to_its_end() -> None:
    found = align(pieces("a|b|c|d"), pieces("a|b"))
    assert found.reference.tolist() == [0, 1, 2] and found.unmatched == (2, 0)


def test_texts_are_compared_until_they_differ() -> None:
    found = align(pieces("a|b|c|d"), pieces("a|b|x|d"))
    assert found.reference.tolist() == [0, 1, 2] and found.unmatched == (2, 2)
    assert len(align(pieces("a"), pieces("b"))) == 0


def test_nothing_against_something_has_no_place() -> None:
    found = align([], pieces("a|b"))
    assert len(found) == 0 and found.unmatched == (0, 2)


def test_tokens_spell_the_text_that_they_were_made_of() -> None:
    tokenizer = Tokenizer.from_folder(demo_model_path("bf16"))
    text = "I'm here — “now” 👩‍🚀\n\tç"
    assert b"".join(spell(tokenizer, tokenizer.encode(text))) == text.encode()


def test_control_tokens_spell_their_names() -> None:
    tokenizer = Tokenizer.from_folder(demo_model_path("bf16"))
    assert spell(tokenizer, [106, 999_999]) == [b"<end_of_turn>", b"<999999>"]
