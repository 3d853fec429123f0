"""The output folder: bytes, modes and names as asked for, wherever the writes fall."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from small_outputs import BODY, HEADER, MIB, START, TOTAL, leftovers, make

from gemma_surgery.checkpoint import (
    PAGE_BYTES,
    OutputFolder,
    aligned_buffer,
    encode_header,
    open_checkpoint,
)
from gemma_surgery.errors import SurgeryError


@pytest.mark.parametrize("direct", [True, False])
def test_committed_folder_holds_what_was_written(tmp_path: Path, direct: bool) -> None:
    folder = make(tmp_path / "deep" / "er" / "out", direct=direct)
    out = tmp_path / "deep" / "er" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "surgery.json"]
    assert leftovers(out.parent) == []
    assert open_checkpoint(out).read("a") == BODY.tobytes()
    assert folder.written_bytes == TOTAL + len(b'{}{"done": true}')
    assert folder.notes == []


def test_files_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        make(tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


@pytest.mark.parametrize("direct", [True, False])
def test_parallel_writes_of_any_place_and_alignment(tmp_path: Path, direct: bool) -> None:
    rng = np.random.default_rng(2)
    size = 9 * MIB + 123
    header, (start,) = encode_header([("a", "U8", (size,))])
    body = rng.integers(0, 255, size, np.uint8)
    cuts = sorted({0, size, *rng.integers(0, size, 60).tolist(), *range(MIB, MIB + 600, 7)})
    pieces = list(itertools.pairwise(cuts))
    with OutputFolder.begin(tmp_path / "out", "f", size, direct=direct) as folder:
        weights = folder.create_weights("m.safetensors", header, start + size)

        def work(first: int) -> None:
            for number, (begin, end) in enumerate(pieces[first::3]):
                offset = start + begin
                if number % 2:  # address and offset agree modulo a page: written without a copy
                    phase = offset % PAGE_BYTES
                    view = aligned_buffer(phase + end - begin)[phase:]
                    view[:] = memoryview(body)[begin:end]
                else:
                    view = memoryview(body)[begin:end]
                weights.write_at(offset, view)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert folder.recheck("m.safetensors", [(start, size)], hashlib.sha256(body.tobytes()).hexdigest())
        folder.commit(b"{}")
    assert (tmp_path / "out" / "m.safetensors").read_bytes() == header + body.tobytes()


def test_direct_writes_fall_back_where_the_file_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def refuse_direct(fd: int, data: memoryview, offset: int) -> int:
        status = Path(f"/proc/self/fdinfo/{fd}")
        if status.exists():
            flags = status.read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & getattr(os, "O_DIRECT", 0):
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse_direct)
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, direct=True) as folder:
        weights = folder.create_weights("model.safetensors", HEADER, TOTAL)
        weights.write_at(START, memoryview(BODY))
        assert not weights.is_direct
        folder.write_file("config.json", b"{}")
        folder.commit(b"{}")
    assert open_checkpoint(tmp_path / "out").read("a") == BODY.tobytes()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100_000], offset))
    make(tmp_path / "out")
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "out").read("a") == BODY.tobytes()


def test_writes_outside_the_tensors_are_refused(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        weights = folder.create_weights("m.safetensors", HEADER, TOTAL)
        for offset, data in [(0, b"x"), (START - 1, b"x"), (TOTAL, b"x"), (TOTAL - 1, b"xy")]:
            with pytest.raises(SurgeryError, match=r"need a write inside bytes .* of|in `m.safetensors`"):
                weights.write_at(offset, data)
        weights.write_at(TOTAL, b"")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "nul\0"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        for write in (
            lambda: folder.write_file(name, b""),
            lambda: folder.create_weights(name, HEADER, TOTAL),
        ):
            with pytest.raises(SurgeryError, match="need a plain, visible file name"):
                write()
