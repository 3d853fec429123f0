"""Reading a tokenizer.json: its tables, its layouts, and what is wrong with malformed ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_cases import IMAGE, SPECIAL, UNUSED, encoded, small_document, small_reference, small_tokenizer

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import tokenizer as tokenizer_module
from gemma_surgery.surgery import tokenizer_json
from gemma_surgery.surgery.tokenizer import TokenizerFile


@pytest.fixture(params=["native", "python"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the native scanner, and with the reader in Python alone."""
    if request.param == "python":
        monkeypatch.setattr(tokenizer_module, "scan_tables", lambda *_: None)
    return str(request.param)


def test_tables_agree_with_the_tokenizers_library() -> None:
    tokenizer, reference = small_tokenizer(), small_reference()
    assert {t: i for i, t in enumerate(tokenizer.tokens)} == reference.get_vocab(with_added_tokens=True)
    assert [tokenizer.tokens[i] for i in tokenizer.special_ids] == [*SPECIAL, IMAGE]
    assert [tokenizer.tokens[i] for i in tokenizer.unused_ids] == list(UNUSED)
    assert [tokenizer.tokens[i] for i in tokenizer.byte_ids] == [f"<0x{b:02X}>" for b in range(256)]
    assert (tokenizer.space, tokenizer.byte_fallback, tokenizer.merge_pairs) == ("▁", True, True)


def test_merge_table_is_in_rank_order_and_names_its_results() -> None:
    merges = small_document()["model"]["merges"]
    vocab = small_document()["model"]["vocab"]
    expected = [[vocab[a], vocab[b], vocab[a + b]] for a, b in merges]
    assert len(expected) > 100
    np.testing.assert_array_equal(small_tokenizer().merges, expected)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("indent", [None, 0, 1, 2])
@pytest.mark.parametrize("sort", [True, False])
def test_every_layout_gives_the_same_tables(
    pairs: bool, indent: int | None, sort: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_json, "BLOCK_BYTES", 100)
    document = small_document(pairs)
    if sort:
        document["model"] = dict(sorted(document["model"].items()))
        document = dict(sorted(document.items()))
    parsed = TokenizerFile.parse(encoded(document, indent), "t")
    assert parsed.tokens == small_tokenizer().tokens
    assert parsed.merge_pairs is pairs
    np.testing.assert_array_equal(parsed.merges, small_tokenizer().merges)


def test_serialized_layout_is_read_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_json, "BLOCK_BYTES", 1000)
    data = encoded(small_document())
    document = tokenizer_json.split_document(data)
    assert document is not None
    blocks = list(document.merge_blocks)
    assert len(blocks) > 5
    assert [merge for block in blocks for merge in block] == small_document()["model"]["merges"]  # type: ignore[attr-defined]


def test_pieces_that_look_like_structure_are_read_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_json, "BLOCK_BYTES", 1)
    strange = ['"', "],", "\\", '"merges": [', "\n      ],\n", "}}", "]\n    }\n  }\n}", '"vocab":{', "a b"]
    for indent in (None, 2):
        document = small_document()
        model = document["model"]
        made = [a + b for a in strange for b in strange]
        for token in [*strange, *made]:
            model["vocab"].setdefault(token, len(model["vocab"]) + 1)
        model["merges"] += [[a, b] for a in strange for b in strange]
        parsed = TokenizerFile.parse(encoded(document, indent), "t")
        tail = [[parsed.tokens[i] for i in row] for row in parsed.merges[-len(made) :]]
        assert tail == [[a, b, a + b] for a in strange for b in strange]


def test_a_key_after_the_merges_is_read_and_kept() -> None:
    document = small_document()
    document["model"]["extra"] = [1]
    parsed = TokenizerFile.parse(encoded(document), "t")
    np.testing.assert_array_equal(parsed.merges, small_tokenizer().merges)
    assert parsed.skeleton["model"]["extra"] == [1]  # type: ignore[index]


def test_holes_in_the_ids_are_allowed() -> None:
    document = small_document()
    del document["model"]["vocab"]["<b>"]
    document["added_tokens"] = [e for e in document["added_tokens"] if e["content"] != "<b>"]
    parsed = TokenizerFile.parse(encoded(document), "t")
    hole = small_tokenizer().find("<b>")
    assert hole is not None
    assert parsed.tokens[hole] is None
    assert not parsed.exists[hole]
    assert parsed.exists.sum() == parsed.num_ids - 1


def test_an_added_token_is_no_byte_token() -> None:
    document = small_document()
    del document["model"]["vocab"]["<0x41>"]
    document["model"]["byte_fallback"] = False
    document["added_tokens"].append({"id": 5000, "content": "<0x41>", "special": False})
    parsed = TokenizerFile.parse(encoded(document), "t")
    assert parsed.byte_ids[0x41] == -1
    assert parsed.byte_ids[0x42] == small_tokenizer().byte_ids[0x42]
    assert parsed.find("<0x41>") == 5000


def test_unused_tokens_may_count_in_any_digits() -> None:
    document = small_document()
    vocab = document["model"]["vocab"]
    for token in ("<unused٣>", "<unused>", "<unused4", "<unused5>x", "<unusedx6>"):
        vocab[token] = len(vocab) + 10
    parsed = TokenizerFile.parse(encoded(document), "t")
    assert [parsed.tokens[i] for i in parsed.unused_ids] == [*UNUSED, "<unused٣>"]


def test_fingerprint_is_the_hash_of_file_and_mask() -> None:
    data, keep = encoded(small_document()), np.arange(small_tokenizer().num_ids) % 3 == 0
    expected = hashlib.sha256(data + np.packbits(keep).tobytes()).hexdigest()
    parsed = TokenizerFile.parse(data, "t")
    assert parsed.fingerprint(keep) == parsed.fingerprint(keep) == expected
    assert parsed.fingerprint(~keep) != expected


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"cannot read `.*none.json`: No such file"):
        TokenizerFile.read(tmp_path / "none.json")


def _model(**changes: Any) -> dict[str, Any]:
    document = small_document()
    document["model"].update(changes)
    return document


def _vocab(**changes: Any) -> dict[str, Any]:
    document = small_document()
    document["model"]["vocab"].update(changes)
    return document


def _added(**changes: Any) -> dict[str, Any]:
    document = small_document()
    document["added_tokens"][0].update(changes)
    return document


def _merges(*merges: Any) -> dict[str, Any]:
    document = small_document()
    document["model"]["merges"] += merges
    return document


def _without_byte() -> dict[str, Any]:
    document = small_document()
    del document["model"]["vocab"]["<0x7F>"]
    return document


def _top(**changes: Any) -> dict[str, Any]:
    return {**small_document(), **changes}


MALFORMED = {
    "empty file": (b"", "need JSON, got `.*` at line 1 of `bad.json`"),
    "cut off": (encoded(small_document())[:-400], "need JSON, got `.*` at line [0-9]+ of `bad.json`"),
    "binary": (b"\x80\x81\x82", "need JSON, got"),
    "lone surrogate": (b'{"model": {"vocab": {"\\ud800": 1}}}', "need JSON, got"),
    "too deep": (b"[" * 100_000, "need JSON, got"),
    "a list": (b"[]", "need an object for the tokenizer, got a list"),
    "no model": (b"{}", "need an object for `model`, got null"),
    "unigram": (_model(type="Unigram"), "need a `BPE` model, got `Unigram`"),
    "type is a number": (_model(type=3), "need a `BPE` model, got a number"),
    "byte level": (_top(decoder={"type": "ByteLevel"}), "got a `ByteLevel` tokenizer"),
    "nested byte level": (
        _top(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}),
        "got a `ByteLevel` tokenizer",
    ),
    "subword prefix": (
        _model(continuing_subword_prefix="##"),
        "without a continuing subword prefix, got `##`",
    ),
    "empty vocabulary": (_model(vocab={}), "got an empty `model.vocab`"),
    "vocabulary is a list": (_model(vocab=["a"]), "need an object for `model.vocab`, got a list"),
    "id is a string": (_vocab(odd="7"), 'need an integer id for token `"odd"`, got a string'),
    "id is a boolean": (_vocab(odd=True), 'need an integer id for token `"odd"`, got a boolean'),
    "id is a fraction": (_vocab(odd=1.5), 'need an integer id for token `"odd"`, got a number'),
    "negative id": (_vocab(odd=-1), 'got -1 for token `"odd"`'),
    "huge id": (_vocab(odd=10**15), 'got 1000000000000000 for token `"odd"`'),
    "id used twice": (_vocab(odd=0), 'need one token per id, got `"<pad>"` and `"odd"` for id 0'),
    "byte token missing": (_without_byte(), "need all 256 byte tokens .* got 255: `<0x7F>` is missing"),
    "merge names a stranger": (_merges(["q~", "z~"]), 'names `"q~"`, which is not in `model.vocab`'),
    "merge makes a stranger": (_merges(["z", "q"]), 'merge .* makes `"zq"`, which is not in `model.vocab`'),
    "merge of three": (
        _merges(["a", "b", "c"]),
        r'need two non-empty pieces in every merge, got `\["a","b","c"\]`',
    ),
    "merge of one": (_merges(["a"]), "need two non-empty pieces in every merge"),
    "merge with an empty piece": (_merges(["", "the"]), r'need two non-empty pieces .* got `\["","the"\]`'),
    "merge of numbers": (_merges([1, 2]), r"need two non-empty pieces .* got `\[1,2\]`"),
    "mixed merges": (_merges("t h"), 'need every merge as `"a b"` or every one as'),
    "merge is null": (_merges(None), 'need every merge as `"a b"` or every one as'),
    "merges is an object": (_model(merges={}), "need a list for `model.merges`, got an object"),
    "added tokens is an object": (_top(added_tokens={}), "need a list for `added_tokens`, got an object"),
    "added token is a string": (
        _top(added_tokens=["a"]),
        r"need an object for `added_tokens\[0\]`, got a string",
    ),
    "added token without id": (_added(id=None), r"in `added_tokens\[0\]`, got null, a string and a boolean"),
    "added token has another id": (_added(id=5), 'need one id for added token `"<pad>"`, got 5 and 0'),
    "added token twice": (
        _top(added_tokens=small_document()["added_tokens"][:1] * 2),
        'added token `"<pad>"` is listed twice',
    ),
    "added token takes an id": (
        _top(added_tokens=[{"id": 0, "content": "<new>", "special": True}]),
        'got `"<pad>"` and `"<new>"` for id 0',
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("indent", [None, 2])
def test_malformed_tokenizers_give_one_sentence(case: str, indent: int | None) -> None:
    document, message = MALFORMED[case]
    data = document if isinstance(document, bytes) else encoded(document, indent)
    with pytest.raises(SurgeryError, match=message) as caught:
        TokenizerFile.parse(data, "bad.json")
    text = caught.value.message
    assert "`bad.json`" in text
    assert "\n" not in text
    assert text[0].islower()
    assert not text.endswith(".")


def test_ids_beyond_the_embedding_are_refused() -> None:
    data, num_ids = encoded(small_document()), small_tokenizer().num_ids
    assert TokenizerFile.parse(data, "t", rows=num_ids).num_ids == num_ids
    with pytest.raises(
        SurgeryError, match=f"within the {num_ids - 1} rows of the embedding, got {num_ids - 1}"
    ):
        TokenizerFile.parse(data, "t", rows=num_ids - 1)
