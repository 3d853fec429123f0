"""Streaming text: every piece together is the text of all tokens, and no piece holds half a character."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.detokenizer import byte_of, decoder_replacements
from gemma_surgery.generation.tokenizer import Tokenizer

BYTE_TEXTS = ("é", "日本", "👩‍🚀", "\r", "\x00", "ÿ")


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_tokenizer)


@pytest.fixture(scope="module")
def real(real_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer)


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = False) -> list[str]:
    stream = tokenizer.detokenizer(skip_special)
    pieces = [stream.add(token_id) for token_id in ids] + [stream.finish()]
    assert stream.text == "".join(pieces)
    return pieces


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in data]
    return [token_id for token_id in ids if token_id is not None]


def id_lists(first_byte: int, num_ids: int) -> st.SearchStrategy[list[int]]:
    """Any ids, whole characters in bytes, cut characters, ids without a token, and runs of one kind."""
    any_id = st.integers(0, num_ids + 100).map(lambda token_id: [token_id])
    byte = st.integers(0, 255).map(lambda byte: [first_byte + byte])
    whole = st.text(min_size=1, max_size=3).map(lambda text: [first_byte + b for b in text.encode()])
    cut = st.tuples(st.text(min_size=1, max_size=2), st.integers(0, 4)).map(
        lambda pair: [first_byte + b for b in pair[0].encode()[pair[1] :]]
    )
    parts = st.lists(st.one_of(any_id, byte, whole, cut), max_size=24)
    return parts.map(lambda lists: [token_id for ids in lists for token_id in ids])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_pieces_together_are_the_decoded_text_on_the_small_tokenizer(
    tiny: Tokenizer, data: st.DataObject, skip_special: bool
) -> None:
    ids = data.draw(id_lists(tiny.id_of("<0x00>") or 0, 2049))
    assert "".join(streamed(tiny, ids, skip_special)) == tiny.decode(ids, skip_special)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_pieces_together_are_the_decoded_text_on_the_real_tokenizer(
    real: Tokenizer, data: st.DataObject, skip_special: bool
) -> None:
    ids = data.draw(id_lists(238, 262145))
    assert "".join(streamed(real, ids, skip_special)) == real.decode(ids, skip_special)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_streaming_the_tokens_of_a_text_gives_the_text(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, special_tokens=False)
    # The decoder writes every U+2581 as a space; the vocabulary spells both the same.
    assert "".join(streamed(tiny, ids)) == text.replace("▁", " ")


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=12))
def test_no_piece_of_valid_text_holds_half_a_character(tiny: Tokenizer, text: str) -> None:
    # All in bytes, with a token of another kind between the characters.
    space = tiny.encode(" ")[0]
    ids = [token_id for character in text for token_id in [*byte_ids(tiny, character.encode()), space]]
    pieces = streamed(tiny, ids)
    assert "".join(pieces) == "".join(f"{character} " for character in text)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", BYTE_TEXTS)
def test_a_character_in_bytes_appears_whole_with_the_next_token(tiny: Tokenizer, text: str) -> None:
    ids = byte_ids(tiny, text.encode())
    stream = tiny.detokenizer()
    assert [stream.add(token_id) for token_id in ids] == [""] * len(ids)
    assert stream.add(tiny.encode("a")[0]) == text + "a"


def test_a_run_of_bytes_that_is_not_utf8_is_one_replacement_character_per_byte(tiny: Tokenizer) -> None:
    ids = byte_ids(tiny, "é".encode() + b"\xf0\x9f")
    assert "".join(streamed(tiny, ids)) == "\ufffd" * 4 == tiny.decode(ids)


def test_an_id_without_a_token_does_not_end_a_run_of_bytes(tiny: Tokenizer) -> None:
    first, second = byte_ids(tiny, "é".encode())
    assert "".join(streamed(tiny, [first, 999_999, second])) == "é" == tiny.decode([first, 999_999, second])


def test_a_skipped_special_token_prints_nothing(tiny: Tokenizer) -> None:
    end = tiny.id_of("<end_of_turn>") or 0
    ids = [*tiny.encode("red"), end]
    assert "".join(streamed(tiny, ids)) == "red<end_of_turn>"
    assert "".join(streamed(tiny, ids, skip_special=True)) == "red"


def test_time_per_token_does_not_grow_with_the_text(tiny: Tokenizer) -> None:
    byte, word = byte_ids(tiny, b"\xe9")[0], tiny.encode(" fox")[0]

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            stream = tiny.detokenizer()
            began = time.perf_counter()
            for _ in range(count):
                stream.add(word)
                stream.add(byte)
            stream.finish()
            best = min(best, time.perf_counter() - began)
        return best

    # Twenty times the tokens: 20 if linear, 400 if every token looked at the text again.
    assert seconds(40_000) < 80 * seconds(2_000)


@pytest.mark.parametrize(
    ("token", "byte"),
    [
        *(("<0x0A>", 10), ("<0xff>", 255), ("<0x+A>", 10), ("<0x-A>", None), ("<0xG0>", None)),
        *(("<0x0A", None), ("<0x00A>", None), ("0x0A", None), ("<0xé>", None), ("<0xA+>", None)),
    ],
)
def test_byte_tokens_are_told_by_their_names(token: str, byte: int | None) -> None:
    assert byte_of(token) == byte


def test_a_byte_token_means_what_the_library_takes_it_for() -> None:
    import tokenizers

    decoder = tokenizers.decoders.ByteFallback()
    for token in ("<0x41>", "<0x4a>", "<0x+A>", "<0x-A>", "<0xA+>", "<0xG0>", "<0x041>", "x0x41>", "<0x 1>"):
        byte = byte_of(token)
        assert decoder.decode([token]) == (token if byte is None else bytes([byte]).decode())


@pytest.mark.parametrize(
    "decoder",
    [
        b'{"type":"ByteLevel","add_prefix_space":true}',
        b'{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},'
        b'{"type":"Strip","content":" ","start":1,"stop":0}]}',
        b'{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"Regex":"a"},"content":" "},'
        b'{"type":"ByteFallback"},{"type":"Fuse"}]}',
    ],
)
def test_a_decoder_of_another_kind_is_refused(decoder: bytes) -> None:
    with pytest.raises(SurgeryError, match="need a decoder of `Replace`, `ByteFallback` and `Fuse`"):
        decoder_replacements(decoder, "tokenizer.json")
