"""Opening right checkpoints: shards, indexes, side files, links, fingerprints; and reading from them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import CONFIG, write_folder

from gemma_surgery.checkpoint import INDEX_NAME, SourceFiles, open_checkpoint
from gemma_surgery.errors import SurgeryError

SHARDS = {
    "model-00001-of-00002.safetensors": {"a": np.arange(6, dtype=np.float32)},
    "model-00002-of-00002.safetensors": {"b": np.arange(8, dtype=np.int32).reshape(2, 4)},
}
MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_single_file_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_folder(tmp_path / "m")))
    assert list(checkpoint.files) == ["model.safetensors"]
    assert checkpoint.config == CONFIG
    assert checkpoint.metadata == {"format": "mlx"}
    assert checkpoint.notes == []
    assert checkpoint.tensors["a"].shape == (6,)
    assert checkpoint.tensors["a"].dtype == "F32"
    assert checkpoint.size_bytes == 24 + 16
    assert np.array_equal(np.frombuffer(checkpoint.read("a"), np.float32), np.arange(6))
    with pytest.raises(SurgeryError, match="need tensor `c`"):
        checkpoint.read("c")


def test_shards_with_index_and_without_open_the_same(tmp_path: Path) -> None:
    plain = open_checkpoint(write_folder(tmp_path / "plain", SHARDS))
    indexed = open_checkpoint(write_folder(tmp_path / "indexed", SHARDS, index={"weight_map": MAP}))
    assert plain.tensors == indexed.tensors
    assert plain.notes == indexed.notes == []
    assert plain.fingerprint == indexed.fingerprint


def test_stale_index_is_ignored_and_noted(tmp_path: Path) -> None:
    # As in a published 4-bit checkpoint: the index of the bf16 source lies beside one quantized file.
    folder = write_folder(tmp_path / "m", index={"weight_map": {**MAP, "c": MAP["a"]}})
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.notes == [
        "ignored a stale `model.safetensors.index.json`: it names `model-00001-of-00002.safetensors`,"
        " `model-00002-of-00002.safetensors`, which the folder lacks; used `model.safetensors`"
    ]


def test_index_of_no_files_is_stale(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", index={"weight_map": {}}))
    assert "it names no file" in checkpoint.notes[0]


def test_files_that_the_index_leaves_out_are_not_read(tmp_path: Path) -> None:
    # A text-only variant: its index lists the language file alone.
    folder = write_folder(tmp_path / "m", SHARDS, index={"weight_map": {"a": MAP["a"]}})
    (folder / "broken.safetensors").write_bytes(b"never opened")
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.notes == [
        "ignored `broken.safetensors`, `model-00002-of-00002.safetensors`:"
        " not named by `model.safetensors.index.json`"
    ]


def test_tensors_that_the_index_leaves_out_are_used_and_noted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        write_folder(tmp_path / "m", index={"weight_map": {"a": "model.safetensors"}})
    )
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.notes == ["used 1 tensors that `model.safetensors.index.json` does not name: `b`"]


def test_side_files_are_what_a_smaller_checkpoint_still_needs(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "m", index={"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    )
    carried = [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    left = [
        "README.md",
        "surgery.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        ".gitattributes",
    ]
    for name in [*carried, *left, "._model.safetensors"]:
        (folder / name).write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    os.mkfifo(folder / "pipe")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.side_files == carried
    assert checkpoint.json_file("tokenizer.json") == {}
    assert checkpoint.notes == [
        "ignored hidden files `._model.safetensors`",
        "ignored weights in another format: `pytorch_model.bin`",
    ]


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", SHARDS, index={"weight_map": MAP})
    (real / "tokenizer.json").write_text('{"version": "1.0"}')
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(real.iterdir())):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob{number}")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.side_files == ["tokenizer.json"]
    assert np.array_equal(np.frombuffer(checkpoint.read("b"), np.int32), np.arange(8))


def test_fingerprint_changes_with_header_name_size_and_config(tmp_path: Path) -> None:
    same = [open_checkpoint(write_folder(tmp_path / name, SHARDS)).fingerprint for name in "ab"]
    renamed = {"x.safetensors": SHARDS[MAP["a"]], "y.safetensors": SHARDS[MAP["b"]]}
    retyped = {**SHARDS, MAP["a"]: {"a": np.arange(6, dtype=np.int32)}}
    others = [
        open_checkpoint(write_folder(tmp_path / "c", renamed)).fingerprint,
        open_checkpoint(write_folder(tmp_path / "d", retyped)).fingerprint,
        open_checkpoint(
            write_folder(tmp_path / "e", SHARDS, config={"model_type": "gemma3_text"})
        ).fingerprint,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 4


def test_fingerprint_ignores_weights(tmp_path: Path) -> None:
    other = {MAP["a"]: {"a": np.zeros(6, np.float32)}, MAP["b"]: SHARDS[MAP["b"]]}
    one = open_checkpoint(write_folder(tmp_path / "a", SHARDS))
    two = open_checkpoint(write_folder(tmp_path / "b", other))
    assert one.fingerprint == two.fingerprint


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    before = open_checkpoint(folder)
    data[-40:] = b"\xff" * 40
    path.write_bytes(data)
    assert open_checkpoint(folder).tensors == before.tensors


def test_threads_read_what_lies_there(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8)
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", {"model.safetensors": {"a": array}}))
    tensor = checkpoint.tensors["a"]
    result = np.zeros_like(array)
    step = 10_007
    with SourceFiles(checkpoint) as source:

        def work(first: int) -> None:
            for begin in range(first * step, len(array), 4 * step):
                part = memoryview(result)[begin : begin + step]
                source.read_into(tensor.file, tensor.start + begin, part)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert source.read_bytes == len(array)
    assert np.array_equal(result, array)


def test_reading_into_typed_memory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m"))
    tensor = checkpoint.tensors["b"]
    result = np.zeros((2, 2), np.int32)
    with SourceFiles(checkpoint) as source:
        source.read_into(tensor.file, tensor.start, memoryview(result))
    assert np.array_equal(result, np.ones((2, 2)))


def test_file_that_shrinks_while_open_is_one_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.tensors["b"]
    with SourceFiles(checkpoint) as source:
        os.truncate(folder / "model.safetensors", tensor.start + 4)
        with pytest.raises(SurgeryError, match=r"need 16 bytes at byte 2?\d+ of `model.safetensors`, got \d"):
            source.read_into(tensor.file, tensor.start, memoryview(bytearray(16)))


def test_file_that_changed_since_opening_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SurgeryError, match="as it was when its header was read"), SourceFiles(checkpoint):
        pass


def test_reading_after_closing_is_one_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m"))
    with SourceFiles(checkpoint) as source:
        pass
    with pytest.raises(SurgeryError, match="need an open weight file"):
        source.read_into("model.safetensors", 0, memoryview(bytearray(1)))


def test_index_file_is_read_strictly_but_other_keys_are_free(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", SHARDS)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": MAP, "x": 1}))
    assert open_checkpoint(folder).notes == []
