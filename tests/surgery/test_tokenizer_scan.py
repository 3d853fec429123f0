"""The native scanner against the reader in Python: the same tables, or left to it."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_cases import REAL_TOKENIZER, encoded, small_document

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import characters
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.tokenizer_reference import reference_tables
from gemma_surgery.surgery.tokenizer_scan import TokenizerTables, scan_tables
from gemma_surgery.surgery.tokenizer_skeleton import MAX_IDS

PIECES = st.text(
    st.sampled_from(
        [*'ab"\\/\b\f\n\r\t\0\x1f\x7f],}{: ', "é", "▁", "\ud7ff", "\u2028", "\uffff", "👍", "\U0010ffff"]
    )
    | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=12,
)
SPACES = st.sampled_from(["", "", " ", "\n", "\n      ", "\t\r\n ", " " * 17])


def assert_same(native: TokenizerTables, reference: TokenizerTables) -> None:
    assert native.table.tokens() == reference.table.tokens()
    assert native.added == reference.added
    np.testing.assert_array_equal(native.vocab_ids, reference.vocab_ids)
    np.testing.assert_array_equal(native.merges, reference.merges)
    assert native.merges.dtype == reference.merges.dtype == np.int32
    assert native.merge_pairs is reference.merge_pairs
    assert json.dumps(native.skeleton) == json.dumps(reference.skeleton)


def outcome(read: Any, data: bytes, rows: int | None = None) -> TokenizerTables | str | None:
    try:
        tables: TokenizerTables | None = read(data, "t", rows)
    except SurgeryError as error:
        return str(error)
    return tables


def compare(data: bytes, rows: int | None = None) -> bool:
    """Whether the scanner had an answer; it must be the reader's."""
    native = outcome(scan_tables, data, rows)
    if native is None:
        return False
    reference = outcome(reference_tables, data, rows)
    if isinstance(native, TokenizerTables):
        assert isinstance(reference, TokenizerTables), reference
        assert_same(native, reference)
    else:
        assert native == reference
    return True


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    joined = draw(st.booleans())
    piece = PIECES.filter(lambda text: " " not in text) if joined else PIECES
    pairs = draw(st.lists(st.tuples(piece, piece), max_size=12))
    tokens = dict.fromkeys(["", "t", *(part for a, b in pairs for part in (a, b, a + b))])
    ids = draw(st.permutations(range(len(tokens) + 3)))
    gap, other = draw(SPACES), draw(SPACES)
    plain = draw(st.booleans())

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=plain)

    colon = f"{other}:{gap}"
    vocab = (
        "{" + f"{other},{gap}".join(f"{text(t)}{colon}{i}" for t, i in zip(tokens, ids, strict=False)) + "}"
    )
    merges = f"{gap},{other}".join(
        text(f"{a} {b}") if joined else f"[{gap}{text(a)}{gap},{other}{text(b)}{gap}]" for a, b in pairs
    )
    members = [f'"type"{colon}"BPE"', f'"vocab"{colon}{vocab}', f'"merges"{colon}[{gap}{merges}{other}]']
    model = f"{other},{gap}".join(draw(st.permutations([*members, f'"deep":[{{"vocab"{colon}{{}}}}]'])))
    added = json.dumps(
        [{"id": len(tokens) + 5, "content": draw(PIECES), "special": True}], ensure_ascii=plain
    )
    top = draw(
        st.permutations([f'"model"{colon}{{{model}}}', f'"added_tokens"{colon}{added}', '"x": "\\"]}"'])
    )
    return f"{other}{{{gap}{f'{gap},{gap}'.join(top)}{gap}}}{gap}".encode()


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_valid_layout_is_understood_and_read_alike(data: bytes) -> None:
    assert compare(data)


JUNK = [
    b'"',
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"-1",
    b"1e3",
    b"null",
    b"true",
]
JUNK += [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xe2\x96",
    b'"model":{',
    b'"vocab":',
    b'"merges":[',
    b"\0",
    b" ",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, length = rng.randrange(len(data) + 1), rng.randrange(12)
        middle = rng.choice((b"", rng.choice(JUNK), bytes([rng.randrange(256)]), data[at : at + 30]))
        data = data[:at] + middle + data[at + rng.choice((0, len(middle), length)) :]
    return data


@settings(max_examples=300, deadline=None)
@given(documents(), st.integers(0, 2**32))
def test_mutations_are_read_alike_or_left_to_the_reader(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        compare(mutated(data, rng), rng.choice((None, 5, 30)))


def test_mutations_of_a_whole_tokenizer_are_read_alike() -> None:
    rng = random.Random(5)
    answers = []
    for number in range(300):
        data = encoded(small_document(pairs=number % 2 == 0), rng.choice((None, 1)))
        answers.append(compare(mutated(data, rng)))
    # Both ways are taken, or the comparison would say little.
    assert 20 < sum(answers) < 280


def small(model: str, top: str = "") -> bytes:
    return f'{{"model": {{"type": "BPE", {model}}}{top}}}'.encode()


VOCAB, MERGES = '"vocab": {"a": 0, "b": 1, "ab": 2}', '"merges": [["a", "b"]]'
LEFT_TO_THE_READER = {
    "no merges": small(VOCAB),
    "no vocabulary": small(MERGES),
    "empty vocabulary": small('"vocab": {}, "merges": []'),
    "model twice": small(f"{VOCAB}, {MERGES}", f', "model": {{"type": "BPE", {VOCAB}, {MERGES}}}'),
    "vocabulary twice": small(f"{VOCAB}, {VOCAB}, {MERGES}"),
    "merges twice": small(f"{VOCAB}, {MERGES}, {MERGES}"),
    "merges before and after": small(f'"merges": [], {VOCAB}, {MERGES}'),
    "escaped key": small(f'{VOCAB}, "\\u006derges": [], {MERGES}'),
    "escaped model": small(f"{VOCAB}, {MERGES}", ', "mod\\u0065l": {}'),
    "token twice": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "a": 3}}, {MERGES}'),
    "token twice in two spellings": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\\u0061": 3}}, {MERGES}'),
    "id twice": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "c": 1}}, {MERGES}'),
    "leading zero": small(f'"vocab": {{"a": 0, "b": 01, "ab": 2}}, {MERGES}'),
    "minus zero": small(f'"vocab": {{"a": -0, "b": 1, "ab": 2}}, {MERGES}'),
    "fraction": small(f'"vocab": {{"a": 0.0, "b": 1, "ab": 2}}, {MERGES}'),
    "exponent": small(f'"vocab": {{"a": 0, "b": 1e0, "ab": 2}}, {MERGES}'),
    "id at the limit": small(f'"vocab": {{"a": 0, "b": {MAX_IDS}, "ab": 2}}, {MERGES}'),
    "raw control character": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\n": 3}}, {MERGES}'),
    "raw control character in a merge": small('"vocab": {"a": 0, "\\n": 1, "a\\n": 2}, "merges": ["a \n"]'),
    "lone surrogate": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\\ud83d": 3}}, {MERGES}'),
    "turned surrogates": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\\udc4d\\ud83d": 3}}, {MERGES}'),
    "unknown escape": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\\x41": 3}}, {MERGES}'),
    "half an escape": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "\\u00g1": 3}}, {MERGES}'),
    "not UTF-8": small(f'"vocab": {{"a": 0, "b": 1, "ab": 2, "@": 3}}, {MERGES}').replace(b"@", b"\xc1\xbf"),
    "not UTF-8 outside": small(f"{VOCAB}, {MERGES}", ', "x": "@"').replace(b"@", b"\xed\xa0\x80"),
    "both merge forms": small(f'{VOCAB}, "merges": [["a", "b"], "a b"]'),
    "both merge forms, turned": small(f'{VOCAB}, "merges": ["a b", ["a", "b"]]'),
    "stranger": small(f'{VOCAB}, "merges": [["a", "c"]]'),
    "makes a stranger": small(f'{VOCAB}, "merges": [["b", "a"]]'),
    "three pieces": small(f'{VOCAB}, "merges": [["a", "b", "b"]]'),
    "two spaces": small('"vocab": {"a": 0, " b": 1, "a b": 2}, "merges": ["a  b"]'),
    "no space": small(f'{VOCAB}, "merges": ["ab"]'),
    "empty piece": small('"vocab": {"": 0, "b": 1}, "merges": [["", "b"]]'),
    "comma at the end": small(f'{VOCAB}, "merges": [["a", "b"],]'),
    "comma in a merge": small(f'{VOCAB}, "merges": [["a", "b",]]'),
    "comma after the vocabulary": small('"vocab": {"a": 0, "b": 1, "ab": 2,}, "merges": []'),
    "brackets that do not match": small(f'{VOCAB}, {MERGES}, "x": [}}'),
    "text behind the end": small(f"{VOCAB}, {MERGES}") + b"x",
    "byte order mark": b"\xef\xbb\xbf" + small(f"{VOCAB}, {MERGES}"),
    "bare word": small(f"{VOCAB}, {MERGES}, \"x\": nul"),
    "too deep": small(f"{VOCAB}, {MERGES}", ', "x": ' + "[" * 2000 + "]" * 2000),
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_TO_THE_READER)
def test_the_unusual_is_left_to_the_reader(case: str) -> None:
    data = LEFT_TO_THE_READER[case]
    assert scan_tables(small(f"{VOCAB}, {MERGES}"), "t", None) is not None
    assert scan_tables(data, "t", None) is None
    # The whole way gives what the reader alone gives, be it tables or an error.
    expected = outcome(reference_tables, data)
    if isinstance(expected, str):
        with pytest.raises(SurgeryError) as caught:
            TokenizerFile.parse(data, "t")
        assert str(caught.value) == expected
    else:
        assert isinstance(expected, TokenizerTables)
        assert TokenizerFile.parse(data, "t").tokens == expected.table.tokens()


def test_a_cut_file_is_never_understood() -> None:
    for pairs in (True, False):
        data = encoded(small_document(pairs), None)
        assert scan_tables(data, "t", None) is not None
        assert all(scan_tables(data[:stop], "t", None) is None for stop in range(0, len(data), 7))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        unique_by=lambda t: t or id(t),
    )
)
@example([])
@example([None, "", None])
def test_the_table_agrees_with_a_list_of_strings(tokens: list[str | None]) -> None:
    tokens = [token for index, token in enumerate(tokens) if token is None or token not in tokens[:index]]
    while tokens and tokens[-1] is None:
        tokens.pop()
    table = ext.TokenTable(tokens)
    assert table.tokens() == tokens
    assert table.num_ids == len(tokens)
    assert [table.token(i) for i in range(-1, len(tokens) + 1)] == [None, *tokens, None]
    for index, token in enumerate(tokens):
        assert token is None or table.find(token) == index
        assert token is None or not table.add(token, len(tokens))
        assert token is None or not table.add("a token of twenty one", index)
    assert table.find("a token of twenty one") == -1
    np.testing.assert_array_equal(table.lengths(), [len(token or "") for token in tokens])
    weights = characters.character_table("▁")
    classes = np.empty(len(tokens), np.uint8)
    table.classes(weights, classes)
    codes = [[ord(character) for character in token or ""] for token in tokens]
    np.testing.assert_array_equal(classes, [np.bitwise_or.reduce(weights[c], initial=0) for c in codes])


def test_the_table_refuses_what_does_not_fit() -> None:
    table, keep = ext.TokenTable(["a", None, "b"]), np.ones(3, bool)
    with pytest.raises(ValueError, match="different tokens"):
        ext.TokenTable(["a", "a"])
    with pytest.raises(ValueError, match="need ids with a token, got 1"):
        table.vocab_json(np.array([0, 1], np.int32), keep)
    with pytest.raises(ValueError, match="need ids with a token, got -1"):
        table.merges_json(np.array([0, 2, -1], np.int32), True, keep)
    with pytest.raises(ValueError, match="need ids with a token, got 3"):
        table.merges_json(np.array([3, 2, 0], np.int32), True, ~keep)
    with pytest.raises(ValueError, match="mask"):
        table.vocab_json(np.array([0], np.int32), keep[:2])
    with pytest.raises(ValueError, match="merges"):
        table.merges_json(np.array([0, 2], np.int32), True, keep)
    with pytest.raises(ValueError, match="table"):
        table.classes(np.zeros(128, np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="output"):
        table.classes(characters.character_table(" "), np.zeros(2, np.uint8))


@pytest.mark.real_tokenizer
@pytest.mark.skipif(not REAL_TOKENIZER.exists(), reason="the real Gemma 3 tokenizer is not there")
def test_the_real_tokenizer_is_understood_and_read_alike() -> None:
    assert compare(REAL_TOKENIZER.read_bytes(), 262_208)
