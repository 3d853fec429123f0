"""Continuing an interrupted output in a later run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from small_outputs import BODY, HEADER, MIB, START, TOTAL, leftovers, write_all

from gemma_surgery.checkpoint import (
    OutputFolder,
    encode_header,
    open_checkpoint,
)
from gemma_surgery.errors import SurgeryError


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt), OutputFolder.begin(tmp_path / "out", "f" * 64, TOTAL) as folder:
        write_all(folder)
        raise KeyboardInterrupt
    assert leftovers(tmp_path) == [".out.journal", ".out.partial"]
    return tmp_path / "out"


def test_resume_continues_and_rechecks(interrupted: Path) -> None:
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        sha256 = hashlib.sha256(BODY).hexdigest()
        assert folder.completed == {"a": {"sha256": sha256}}
        assert folder.notes == ["resumed an interrupted run for `out`: 1 units recorded"]
        assert folder.recheck("model.safetensors", [(START, len(BODY))], sha256)
        assert folder.recheck("model.safetensors", [(START, 1000), (START + 1000, len(BODY) - 1000)], sha256)
        assert not folder.recheck("model.safetensors", [(START, len(BODY) - 1)], sha256)
        assert not folder.recheck("model.safetensors", [(START, len(BODY) + 1)], sha256)
        assert not folder.recheck("absent.safetensors", [(0, 1)], sha256)
        assert folder.create_weights("model.safetensors", HEADER, TOTAL).is_resumed
        assert folder.written_bytes == 0
        folder.commit(b"{}")
    assert open_checkpoint(interrupted).read("a") == BODY.tobytes()


def test_bytes_that_changed_on_disk_fail_the_recheck(interrupted: Path) -> None:
    path = interrupted.parent / ".out.partial" / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(START + 2 * MIB)
        file.write(bytes([BODY[2 * MIB] ^ 1]))
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        sha256 = str(folder.completed["a"]["sha256"])
        assert not folder.recheck("model.safetensors", [(START, len(BODY))], sha256)


def test_other_header_or_size_starts_the_file_again(interrupted: Path) -> None:
    other, _ = encode_header([("z", "U8", (3 * MIB + 777,))])
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        weights = folder.create_weights("model.safetensors", other, TOTAL)
        assert not weights.is_resumed
        assert folder.recheck("model.safetensors", [(START, 4096)], hashlib.sha256(bytes(4096)).hexdigest())


def test_resume_refuses_another_plan(interrupted: Path) -> None:
    with pytest.raises(SurgeryError, match=r"another source or plan \(fingerprint f{12}, need e{12}\)"):
        OutputFolder.begin(interrupted, "e" * 64, TOTAL, resume=True)
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        assert list(folder.completed) == ["a"]


def test_without_resume_the_leftover_is_discarded(interrupted: Path) -> None:
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL) as folder:
        assert folder.completed == {}
        assert folder.notes == ["discarded an interrupted run for `out`"]
        assert list(folder.path.iterdir()) == []


def test_resume_with_nothing_left_starts_from_the_beginning(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, resume=True) as folder:
        assert folder.notes == ["nothing to resume for `out`: started from the beginning"]
        write_all(folder)
        folder.commit(b"{}")
    assert open_checkpoint(tmp_path / "out").read("a") == BODY.tobytes()


@pytest.mark.parametrize("lost", [".out.journal", ".out.partial"])
def test_resume_without_journal_or_folder_starts_from_the_beginning(interrupted: Path, lost: str) -> None:
    path = interrupted.parent / lost
    if path.is_dir():
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    else:
        path.unlink()
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        assert folder.completed == {}
        assert list(folder.path.iterdir()) == []


def test_half_written_small_files_are_removed_on_resume(interrupted: Path) -> None:
    (interrupted.parent / ".out.partial" / ".tokenizer.json.tmp").write_bytes(b"half")
    with OutputFolder.begin(interrupted, "f" * 64, TOTAL, resume=True) as folder:
        folder.commit(b"{}")
    assert leftovers(interrupted) == []


def test_abandon_removes_everything(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        write_all(folder)
        folder.abandon()
    assert list(tmp_path.iterdir()) == []
