"""The tokenizer of a folder: what it reads, what it refuses, and what it makes of control tokens."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from compressing import compress_steps

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.tokenizer import Tokenizer

PRUNE = '[[steps]]\nstep = "prune_vocabulary"\nkeep = ["special", "ascii", "typographic"]\n'


@pytest.fixture
def folder(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_tokenizer, tmp_path / "copy"))


@pytest.fixture(scope="module")
def whole(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_tokenizer)


@pytest.fixture(scope="module")
def pruned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    output = compress_steps(tiny, tmp_path_factory.mktemp("pruned"), PRUNE)
    return Tokenizer.load(open_checkpoint(output))


def test_nothing_is_added_in_front(whole: Tokenizer) -> None:
    assert whole.decode(whole.encode("The quick fox")) == "The quick fox"
    assert whole.encode("") == []
    assert whole.bos_id == 2


def test_names_of_control_tokens_become_these_tokens_only_if_wanted(whole: Tokenizer) -> None:
    text = "a<end_of_turn>b"
    assert whole.id_of("<end_of_turn>") == 106
    assert 106 in whole.encode(text)
    assert 106 not in whole.encode(text, special_tokens=False)
    assert whole.decode(whole.encode(text, special_tokens=False)) == text
    # The choice of one call is not the next one's.
    assert 106 in whole.encode(text)


def test_special_tokens_can_be_left_out_of_the_text(whole: Tokenizer) -> None:
    ids = whole.encode("<start_of_turn>user\nhi<end_of_turn>")
    assert whole.decode(ids) == "<start_of_turn>user\nhi<end_of_turn>"
    assert whole.decode(ids, skip_special=True) == "user\nhi"
    assert {0, 1, 2, 105, 106} <= whole.special_ids


def test_an_unknown_token_has_no_id_and_an_unknown_id_no_token(whole: Tokenizer) -> None:
    assert whole.id_of("no such token") is None
    assert whole.token_of(1_000_000) is None


def test_a_pruned_tokenizer_keeps_ids_and_gives_every_text_back(whole: Tokenizer, pruned: Tokenizer) -> None:
    english = "The quick brown fox isn't tired.\n\n<start_of_turn>user"
    assert pruned.encode(english) == whole.encode(english)
    assert pruned.id_of("<image_soft_token>") == whole.id_of("<image_soft_token>") == 2048
    for text in ("Быстрая лиса", "人人生而自由", "👩‍🚀 café", "\r\x00"):
        ids = pruned.encode(text)
        assert pruned.decode(ids) == text
        stream = pruned.detokenizer()
        assert "".join(stream.add(token_id) for token_id in ids) + stream.finish() == text
    cyrillic = whole.id_of("и")
    assert cyrillic is not None
    assert pruned.token_of(cyrillic) is None
    assert pruned.decode([cyrillic]) == ""


def test_special_strings_come_from_either_way_of_writing_them(folder: Path) -> None:
    settings = {
        "bos_token": {"content": "<bos>", "special": True},
        "eos_token": "<end_of_turn>",
        "extra_special_tokens": {"image_token": "<image_soft_token>"},
        "chat_template": "not a token",
        "added_tokens_decoder": {},
        "pad_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    strings = Tokenizer.from_folder(folder).special_strings
    assert strings["bos_token"] == "<bos>"
    assert strings["eos_token"] == "<end_of_turn>"
    assert strings["image_token"] == "<image_soft_token>"
    assert strings["pad_token"] == "<pad>"
    assert "chat_template" not in strings


def test_a_folder_without_settings_has_gemmas_names(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_strings["bos_token"] == "<bos>"
    assert tokenizer.chat_template is None


def test_limits_saved_by_training_do_not_cut_or_pad_a_text(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    before = Tokenizer.from_folder(folder).encode("The quick brown fox")
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    assert Tokenizer.from_folder(folder).encode("The quick brown fox") == before


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"^\[tokenizer\] need `tokenizer.json` in `.*`, which lacks it"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"model": {}}', b'{"version": "1.0", "model": {"type": "BPE"}}'],
)
def test_a_broken_tokenizer_is_one_sentence_with_the_file(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    with pytest.raises(
        SurgeryError, match=r"^\[tokenizer\] need a tokenizer, got `.*` in `.*tokenizer.json`"
    ):
        Tokenizer.from_folder(folder)


def test_a_tokenizer_with_another_decoder_is_refused(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(SurgeryError, match="need a decoder of"):
        Tokenizer.from_folder(folder)
    document["decoder"] = None
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(SurgeryError, match="need a decoder of"):
        Tokenizer.from_folder(folder)


def test_a_named_pipe_in_place_of_the_tokenizer_is_refused_at_once(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(SurgeryError, match="need a regular file"):
        Tokenizer.from_folder(folder)


def test_broken_settings_are_one_sentence_with_the_file(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(SurgeryError, match=r"^\[tokenizer\] `tokenizer_config.json` is not valid JSON"):
        Tokenizer.from_folder(folder)


def test_text_that_is_no_unicode_is_refused(whole: Tokenizer) -> None:
    with pytest.raises(SurgeryError, match=r"got half of a surrogate pair at character 2"):
        whole.encode("ab\ud800")
