"""Malformed folders, indexes and configs: each is refused with its own one-line message."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import header_bytes, write_folder

from gemma_surgery.checkpoint import INDEX_NAME, load_json_object, open_checkpoint
from gemma_surgery.errors import SurgeryError

ONE = np.ones(4, np.float32)
TWO_SHARDS = {
    "model-00001-of-00002.safetensors": {"a": ONE},
    "model-00002-of-00002.safetensors": {"b": ONE},
}


def _index(entries: object) -> Callable[[Path], None]:
    return lambda folder: (folder / INDEX_NAME).write_text(json.dumps({"weight_map": entries})) and None


def _text(name: str, text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data) and None


def _remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return act


def _both(*acts: Callable[[Path], None]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for each in acts:
            each(folder)

    return act


def _two_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_folder(folder, TWO_SHARDS)


def _folder_as_weights(folder: Path) -> None:
    (folder / "extra.safetensors").mkdir()


def _pipe_as_weights(folder: Path) -> None:
    os.mkfifo(folder / "extra.safetensors")


def _dangling_link(folder: Path) -> None:
    (folder / "extra.safetensors").symlink_to(folder / "nowhere")


def _config_is_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def _config_is_a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _same_tensor_twice(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-copy.safetensors")


# name -> (what is done to a right folder with tensors a and b in model.safetensors, message)
ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no_config": (_remove("config.json"), "need `config.json` in `{folder}`, which lacks it"),
    "config_is_not_json": (
        _text("config.json", "{"),
        "`config.json` is not valid JSON: expecting property name enclosed in double quotes at character 1",
    ),
    "config_is_a_list": (
        _text("config.json", "[1]"),
        "`config.json` needs a JSON object at the top, got an array",
    ),
    "config_is_null": (
        _text("config.json", "null"),
        "`config.json` needs a JSON object at the top, got null",
    ),
    "config_is_empty": (
        _text("config.json", ""),
        "`config.json` is not valid JSON: expecting value at character 0",
    ),
    "config_has_a_key_twice": (
        _text("config.json", '{"vocab_size": 1, "vocab_size": 2}'),
        "`config.json` has the key `vocab_size` twice in one object",
    ),
    "config_is_utf16": (
        _text("config.json", '{"a": 1}'.encode("utf-16")),
        "`config.json` is not UTF-8: byte 0 is 0xff",
    ),
    "config_is_nested_too_deeply": (
        _text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
        "`config.json` is not usable JSON: nested too deeply",
    ),
    "config_holds_infinity": (
        _text("config.json", '{"a": Infinity}'),
        "`config.json` is not valid JSON: Infinity is not a JSON number",
    ),
    "config_is_a_folder": (_config_is_a_folder, "cannot read `{folder}/config.json`: is a directory"),
    "config_is_a_pipe": (
        _config_is_a_pipe,
        "need a regular file, got something else at `{folder}/config.json`",
    ),
    "no_weights": (
        _remove("model.safetensors"),
        "need a `*.safetensors` file in `{folder}`, which holds none",
    ),
    "no_weights_but_an_index": (
        _both(_remove("model.safetensors"), _index({"a": "model.safetensors"})),
        "need a `*.safetensors` file in `{folder}`, which holds none, though `model.safetensors.index.json`"
        " names some",
    ),
    "only_pytorch_weights": (
        _both(_remove("model.safetensors"), _text("pytorch_model.bin", "x")),
        "need weights as safetensors, got `pytorch_model.bin` in `{folder}`",
    ),
    "only_gguf_weights": (
        _both(_remove("model.safetensors"), _text("m.gguf", "x"), _text("n.gguf", "x")),
        "need weights as safetensors, got `m.gguf`, `n.gguf` in `{folder}`",
    ),
    "empty_weights": (
        _text("model.safetensors", ""),
        "need a safetensors file, got an empty one: `model.safetensors`",
    ),
    "truncated_weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 150),
        "need a header of 144 bytes, but `model.safetensors` ends after 142 of them",
    ),
    "weights_without_tensors": (
        _text("model.safetensors", header_bytes(b"{}")),
        "need at least one tensor, got none in `model.safetensors`",
    ),
    "folder_named_like_weights": (
        _folder_as_weights,
        "cannot read `{folder}/extra.safetensors`: is a directory",
    ),
    "pipe_named_like_weights": (
        _pipe_as_weights,
        "need a regular file, got something else at `extra.safetensors`",
    ),
    "dangling_link_as_weights": (
        _dangling_link,
        "cannot read `{folder}/extra.safetensors`: no such file or directory",
    ),
    "same_tensor_in_two_files": (
        _same_tensor_twice,
        "tensor `a` is in both `model-copy.safetensors` and `model.safetensors`",
    ),
    "shard_missing_without_index": (
        _both(_two_shards, _remove("model-00002-of-00002.safetensors")),
        "need 2 weight files named `model-*`, but `model-00002-of-00002.safetensors` is missing",
    ),
    "shard_missing_by_index": (
        _both(
            _two_shards,
            _remove("model-00002-of-00002.safetensors"),
            _index({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
        ),
        "need 2 weight files by `model.safetensors.index.json`,"
        " but `model-00002-of-00002.safetensors` is missing",
    ),
    "index_is_not_json": (
        _text(INDEX_NAME, "weight_map"),
        "`model.safetensors.index.json` is not valid JSON: expecting value at character 0",
    ),
    "index_without_weight_map": (
        _text(INDEX_NAME, "{}"),
        "need an object `weight_map`, got null in `model.safetensors.index.json`",
    ),
    "index_with_a_list": (
        _text(INDEX_NAME, '{"weight_map": ["a"]}'),
        "need an object `weight_map`, got an array of 1 values in `model.safetensors.index.json`",
    ),
    "index_with_a_tensor_twice": (
        _text(INDEX_NAME, '{"weight_map": {"a": "model.safetensors", "a": "other.safetensors"}}'),
        "`model.safetensors.index.json` has the key `a` twice in one object",
    ),
    "index_entry_is_a_number": (
        _index({"a": 1}),
        "need a file name, got 1 for tensor `a` in `model.safetensors.index.json`",
    ),
    "index_entry_above_the_folder": (
        _index({"a": "../model.safetensors"}),
        "need the name of a file inside the folder, got `../model.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_is_absolute": (
        _index({"a": "/etc/passwd.safetensors"}),
        "need the name of a file inside the folder, got `/etc/passwd.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_with_backslash": (
        _index({"a": "..\\model.safetensors"}),
        "need the name of a file inside the folder, got `..\\model.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_with_drive": (
        _index({"a": "C:model.safetensors"}),
        "need the name of a file inside the folder, got `C:model.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_with_nul": (
        _index({"a": "model.safetensors\0"}),
        "need the name of a file inside the folder, got `model.safetensors\\x00` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_in_a_subfolder": (
        _index({"a": "sub/model.safetensors"}),
        "need the name of a file inside the folder, got `sub/model.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_is_empty": (
        _index({"a": ""}),
        "need the name of a file inside the folder, got `` for tensor `a` in `model.safetensors.index.json`",
    ),
    "index_entry_is_hidden": (
        _index({"a": ".model.safetensors"}),
        "need the name of a visible file, got `.model.safetensors` for tensor `a`"
        " in `model.safetensors.index.json`",
    ),
    "index_entry_of_another_format": (
        _index({"a": "pytorch_model.bin"}),
        "need a safetensors file, got `pytorch_model.bin` for tensor `a` in `model.safetensors.index.json`",
    ),
    "index_names_a_tensor_that_no_file_has": (
        _index({"a": "model.safetensors", "b": "model.safetensors", "c": "model.safetensors"}),
        "`model.safetensors.index.json` names `model.safetensors` for tensor `c`, but no file has it",
    ),
    "index_names_the_wrong_shard": (
        _both(
            _two_shards,
            _index({"b": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}),
        ),
        "`model.safetensors.index.json` names `model-00001-of-00002.safetensors` for tensor `b`,"
        " but it is in `model-00002-of-00002.safetensors`",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_malformed_folder_is_refused_with_its_own_line(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    open_checkpoint(folder)  # right before the attack
    attack, message = ATTACKS[name]
    attack(folder)
    with pytest.raises(SurgeryError) as caught:
        open_checkpoint(folder)
    assert caught.value.message == message.format(folder=folder)
    assert "\n" not in caught.value.message


def test_folder_attacks_and_header_attacks_have_distinct_messages() -> None:
    messages = [message for _, message in ATTACKS.values()]
    assert len(messages) == len(set(messages)) >= 38


def test_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "model")
    folder.chmod(0)
    try:
        if os.access(folder, os.R_OK):  # root reads everything

            def deny(self: Path) -> object:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(Path, "iterdir", deny)
        with pytest.raises(SurgeryError, match="permission denied"):
            open_checkpoint(folder)
    finally:
        folder.chmod(0o755)


def test_huge_json_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 600 * 1024 * 1024)
    with pytest.raises(
        SurgeryError, match=r"need at most 536,870,912 bytes, got 629,145,600 in `config.json`"
    ):
        load_json_object(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "need a folder or a Hugging Face repository id, got `/no/such/folder`"),
        ("nowhere", "need a folder or a Hugging Face repository id, got `nowhere`"),
        ("./a/b", "need a folder or a Hugging Face repository id, got `./a/b`"),
        ("a/b/c", "need a folder or a Hugging Face repository id, got `a/b/c`"),
        ("a/../b", "need a folder or a Hugging Face repository id"),
        ("x\0y", "got `x\\x00y`, which is neither"),
        ("n" * 5000, "cannot open `nnn"),
    ],
)
def test_model_that_is_neither_folder_nor_repository_is_refused(model: str, message: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        open_checkpoint(model)
    assert message in caught.value.message


def test_file_instead_of_folder_gets_a_hint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(SurgeryError, match="need a folder, got the file") as caught:
        open_checkpoint(folder / "model.safetensors")
    assert caught.value.hint == "give the folder that the file is in"


def test_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(SurgeryError, match="need a repository id for revision `main`"):
        open_checkpoint(folder, revision="main")
