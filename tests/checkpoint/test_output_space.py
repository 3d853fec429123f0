"""Full and failing disks: one error, and nothing or everything left."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
from small_outputs import BODY, HEADER, MIB, START, TOTAL, write_all

from gemma_surgery.checkpoint import (
    OutputFolder,
    target,
)
from gemma_surgery.errors import SurgeryError


def test_too_little_space_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError) as caught:
        OutputFolder.begin(tmp_path / "a" / "out", "f", 10**18)
    assert "need 1000.00 PB of free space at" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("free ")
    assert list(tmp_path.iterdir()) == []


def test_space_of_an_interrupted_run_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        write_all(folder)
    real = os.statvfs(tmp_path)
    values = list(real)
    values[4] = (MIB + target.MARGIN_BYTES) // real.f_frsize  # f_bavail: 1 MiB beside the margin
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    with pytest.raises(SurgeryError, match="free space"):
        OutputFolder.begin(tmp_path / "other", "f", TOTAL)
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, resume=True) as folder:
        assert list(folder.completed) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite", "write", "fsync"])
def test_full_disk_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int
) -> None:
    if not hasattr(os, function) or (function == "fsync" and sys.platform == "darwin"):
        pytest.skip(f"{function} is not what is called on this system")

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        monkeypatch.setattr(os, function, fail)
        with pytest.raises(SurgeryError) as caught:
            write_all(folder)
            folder.commit(b"{}")
        monkeypatch.undo()
        assert caught.value.message.startswith("disk full while writing `")
        for again in (lambda: folder.write_file("x", b""), lambda: folder.record("b", {})):
            with pytest.raises(SurgeryError) as repeated:
                again()
            assert repeated.value is caught.value
    assert list(tmp_path.iterdir()) == []


def test_full_disk_stops_all_threads_with_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    calls = iter(range(1000))
    errors: list[SurgeryError] = []

    def fail_later(fd: int, data: memoryview, offset: int) -> int:
        if next(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        weights = folder.create_weights("m.safetensors", HEADER, TOTAL)
        monkeypatch.setattr(os, "pwrite", fail_later)

        def work(first: int) -> None:
            try:
                for begin in range(first * 10_000, len(BODY) - 10_000, 40_000):
                    weights.write_at(START + begin, memoryview(BODY)[begin : begin + 10_000])
            except SurgeryError as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 4
    assert len({id(error) for error in errors}) == 1
    assert list(tmp_path.iterdir()) == []


def test_failing_disk_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        write_all(folder)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(
            SurgeryError, match=r"cannot write `model\.safetensors`: Input/output error"
        ) as caught:
            folder.commit(b"{}")
        monkeypatch.undo()
    assert caught.value.hint is not None
    assert "--resume" in caught.value.hint
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, resume=True) as folder:
        assert list(folder.completed) == ["a"]
