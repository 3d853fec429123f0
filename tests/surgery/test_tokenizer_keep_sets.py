"""What every keep set matches, and the two sets that read files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizer_cases import (
    IMAGE,
    RUNS,
    SPECIAL,
    UNUSED,
    encoded,
    mask_of,
    small_document,
    small_reference,
    small_tokenizer,
    surfaces,
)

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import corpus
from gemma_surgery.surgery.characters import (
    ASCII,
    LATIN,
    NEWLINE,
    OTHER,
    PICTOGRAPH,
    TAB,
    TYPOGRAPHIC,
    token_classes,
)
from gemma_surgery.surgery.keep_sets import KEEP_SETS, from_file, keep_pass
from gemma_surgery.surgery.tokenizer import TokenizerFile

BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
CONTROL = {*SPECIAL, IMAGE, *BYTES}


def kept(name: str) -> set[str]:
    return surfaces(small_tokenizer(), keep_pass(small_tokenizer(), name).mask)


def test_token_classes_are_the_union_over_characters() -> None:
    tokens = ["a▁~", "", None, "\n", "\t\n", "é", "“x", "❤️", "д", "\x7f", "×", "ß👍", "\U0010ffff"]
    classes = [
        ASCII, 0, 0, NEWLINE, TAB | NEWLINE, LATIN, TYPOGRAPHIC | ASCII, PICTOGRAPH, OTHER, OTHER,
        TYPOGRAPHIC, LATIN | PICTOGRAPH, OTHER,
    ]  # fmt: skip
    assert token_classes(ext.TokenTable(tokens), "▁").tolist() == classes
    assert token_classes(ext.TokenTable([None, ""]), "▁").tolist() == [0, 0]
    assert token_classes(ext.TokenTable(["▁"]), " ").tolist() == [OTHER]


def test_ascii_is_printable_ascii_without_unused_tokens() -> None:
    tokens = {token for token in small_tokenizer().tokens if token is not None}
    printable = {t for t in tokens if all(" " <= c <= "~" for c in t.replace("▁", " "))}
    assert kept("ascii") == (printable - set(UNUSED)) | CONTROL
    assert {"▁the", "<b>", IMAGE} <= kept("ascii")
    assert not kept("ascii") & {*UNUSED, *RUNS, "é", "“"}


def test_typographic_is_runs_and_signs_with_ascii() -> None:
    tokens = kept("typographic")
    assert {*RUNS, "“", "—", "…", "•", "£", "½", "→", "0°"} <= tokens
    assert not any(c.isalpha() and not c.isascii() for t in tokens for c in t)
    assert all(any(not c.isascii() and c != "▁" for c in t) for t in tokens - set(RUNS))


def test_latin_is_accented_letters_with_ascii() -> None:
    tokens = kept("latin")
    assert {"é", "ï", "▁café"} <= tokens
    assert all(any("À" <= c <= "ɏ" for c in t) for t in tokens)
    assert not any(c in t for t in tokens for c in "дн“👍")


def test_emoji_is_pictographs_with_their_joiners() -> None:
    assert {"👍", "❤", "\ufe0f", "\u200d", "🏽", "🇩", "🇪"} <= kept("emoji")
    assert not any("a" <= c <= "z" and len(t) == 1 for t in kept("emoji") for c in t)


def test_special_and_all() -> None:
    assert kept("special") == CONTROL
    assert kept("all") == {token for token in small_tokenizer().tokens if token} - set(UNUSED)


@pytest.mark.parametrize("name", KEEP_SETS)
def test_no_set_matches_unused_tokens(name: str) -> None:
    assert not kept(name) & set(UNUSED)
    assert KEEP_SETS[name].description[0].islower()


def test_unknown_set_is_refused_with_the_choices() -> None:
    with pytest.raises(SurgeryError, match="need a known keep set, got `asci`") as caught:
        keep_pass(small_tokenizer(), "asci")
    assert "`ascii`, `typographic`" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("▁the\n the\n\u201c\n", ["▁the", "“"]),
        ('["\\n", "▁the", 0]', ["\n", "▁the", "<pad>"]),
        ("0\n2\n", ["<pad>", "<bos>"]),
        ("th\r\n", ["th"]),
        ("", []),
        ("[]", []),
    ],
)
def test_keep_file_takes_tokens_or_ids(tmp_path: Path, text: str, tokens: list[str]) -> None:
    path = tmp_path / "keep.txt"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(from_file(small_tokenizer(), path), mask_of(small_tokenizer(), *tokens))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"the~~\nq\nxyzzy\n", 'got 2 unknown in `.*`: `"the~~"`, `"xyzzy"`'),
        # With a word in the list, a number is a token, and no digit is one here.
        (b"9\nq\n", 'got 1 unknown in `.*`: `"9"`'),
        (b"[99999, -1, 3]", "got 2 unknown in `.*`: `99999`, `-1`\n"),
        (b"[true]", "need tokens or ids in the list, got a boolean"),
        (b"ok\nno \xff\n", "need UTF-8, got other bytes in `.*` line 2"),
    ],
)
def test_bad_keep_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "keep.txt"
    path.write_bytes(data)
    with pytest.raises(SurgeryError, match=message):
        from_file(small_tokenizer(), path)


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(encoded(small_document()))
    return path


def test_corpus_counts_the_tokens_of_text_and_json_lines(tmp_path: Path, tokenizer_path: Path) -> None:
    text, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("the fox\n\n\nthe café")
    records.write_text('{"text": "the fox"}\n\n{"text": "“no”", "id": 1}\n')
    counts = corpus.corpus_counts([text, records], tokenizer_path, small_tokenizer().num_ids)
    expected = np.zeros(small_tokenizer().num_ids, np.int64)
    for document in ("the fox\n\n\nthe café", "the fox", "“no”"):
        for token_id in small_reference().encode(document, add_special_tokens=False).ids:
            expected[token_id] += 1
    np.testing.assert_array_equal(counts, expected)
    assert counts[small_tokenizer().tokens.index("\n\n\n")] == 1
    for threshold in (1, 2, 3):
        mask = corpus.from_corpus(small_tokenizer(), [text, records], tokenizer_path, threshold)
        np.testing.assert_array_equal(mask, expected >= threshold)
    assert expected.max() >= 3


def test_corpus_text_is_cut_at_line_ends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_CHARACTERS", 10)
    path = tmp_path / "a.txt"
    text = "".join(f"line {n}\n" + "\n" * (n % 4) for n in range(50))
    path.write_text(text)
    pieces = list(corpus.documents(path))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert all(piece.endswith("\n") and not piece.startswith("\n") for piece in pieces)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\nnot \xfe fine\n", r"need UTF-8, got byte 0xfe in `.*a\.txt` line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}\n', r"string `text` in `.*a\.jsonl` line 2"),
        ("a.jsonl", b"{\n", "line 1"),
        ("a.jsonl", b'{"text": 5}\n', "line 1"),
    ],
)
def test_bad_corpus_files_name_file_and_line(
    tmp_path: Path, tokenizer_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SurgeryError, match=message):
        corpus.from_corpus(small_tokenizer(), [path], tokenizer_path)


def test_corpus_arguments_are_checked(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"cannot read `.*none.txt`: No such file"):
        corpus.from_corpus(small_tokenizer(), [tmp_path / "none.txt"], tokenizer_path)
    with pytest.raises(SurgeryError, match="need at least one corpus file"):
        corpus.from_corpus(small_tokenizer(), [], tokenizer_path)
    with pytest.raises(SurgeryError, match="`min_count` of at least 1, got 0"):
        corpus.from_corpus(small_tokenizer(), [tmp_path], tokenizer_path, 0)


def test_spaces_that_stay_spaces_count_as_ascii() -> None:
    document = small_document()
    document["normalizer"] = document["pre_tokenizer"] = None
    tokenizer = TokenizerFile.parse(encoded(document), "t")
    assert tokenizer.space == " "
    assert "▁the" not in surfaces(tokenizer, keep_pass(tokenizer, "ascii").mask)
