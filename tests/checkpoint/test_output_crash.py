"""Killed and starved writers: the target is absent, old, resumable or complete, never half there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import writer_program
from safetensors.numpy import load_file

from gemma_surgery.checkpoint import OutputFolder, encode_header
from gemma_surgery.errors import SurgeryError

ROOT = Path(__file__).parents[2]
PROGRAM = Path(writer_program.__file__)
OLD = {
    "config.json": b"{}",
    "old.safetensors": encode_header([("o", "U8", (3,))])[0] + b"old",
    "surgery.json": b"1",
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put_old(target: Path) -> None:
    target.mkdir()
    for name, data in OLD.items():
        (target / name).write_bytes(data)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_single_step_then_resumed(tmp_path: Path, overwrite: bool) -> None:
    expected = writer_program.expected_files()
    outcomes = {"absent": 0, "old": 0, "complete": 0}
    resumed_units = 0
    for step in range(10_000):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        target = folder / "out"
        if overwrite:
            put_old(target)
        killed = writer_program.write_until_killed(target, step, overwrite=overwrite)
        if not killed:
            assert files_of(target) == expected
            break
        if not target.exists():
            outcome = "absent"
        else:
            outcome = "old" if files_of(target) == OLD else "complete"
            assert outcome == "old" or files_of(target) == expected
        outcomes[outcome] += 1
        if outcome == "complete" and not overwrite:
            with pytest.raises(SurgeryError, match="already exists"):
                writer_program.write(target, resume=True, overwrite=False, threads=1)
        else:
            kept = writer_program.write(target, resume=True, overwrite=overwrite, threads=1)
            resumed_units += len(kept)
        assert files_of(target) == expected
        assert [path.name for path in folder.iterdir()] == ["out"]
        shutil.rmtree(folder)
    assert step > 60
    assert resumed_units > 100
    assert outcomes["complete"] > 0
    assert outcomes["old" if overwrite else "absent"] > 50
    # Before Python 3.11 pathlib bound `os.rename` at import, so a kill there cannot be staged.
    if overwrite and sys.version_info >= (3, 11):
        assert outcomes["absent"] == 1  # exactly between the two renames


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="pathlib bound `os.rename` at import: the kill cannot be staged"
)
def test_overwrite_killed_between_the_renames_gives_the_old_target_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for step in range(10_000):
        put_old(target)
        assert writer_program.write_until_killed(target, step, overwrite=True)
        if not target.exists():
            break
        shutil.rmtree(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.journal",
        ".out.partial",
        ".out.replaced",
    ]
    with pytest.raises(SurgeryError, match="already exists"):
        OutputFolder.begin(target, writer_program.FINGERPRINT, 0)
    assert files_of(target) == OLD
    with OutputFolder.begin(target, writer_program.FINGERPRINT, 0, resume=True, overwrite=True) as folder:
        assert len(folder.completed) == len(writer_program.SIZES)


def test_old_target_set_aside_and_a_stranger_in_its_place_is_left_to_the_user(tmp_path: Path) -> None:
    put_old(tmp_path / ".out.replaced")
    (tmp_path / "out").mkdir()
    with pytest.raises(SurgeryError, match="another folder has taken its name"):
        OutputFolder.begin(tmp_path / "out", "f", 0, overwrite=True)
    assert files_of(tmp_path / ".out.replaced") == OLD


def run_program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_killed_at_random_moments_until_it_is_done(tmp_path: Path) -> None:
    target = tmp_path / "out"
    rng = random.Random(7)
    kills = 0
    for _ in range(60):
        process = run_program(str(target), "resume", "slow")
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        if "finished" in rest or target.exists():
            break
        kills += 1
        if kills == 8:
            final = run_program(str(target), "resume")
            assert "finished" in final.communicate()[0]
            break
    assert kills >= 1
    assert files_of(target) == writer_program.expected_files()
    tensors = load_file(target / "vision.safetensors")
    assert tensors["t11"].tobytes() == writer_program.unit_bytes(11)


def test_locks_end_with_the_process(tmp_path: Path) -> None:
    process = run_program(str(tmp_path / "out"), "slow")
    assert process.stdout is not None
    process.stdout.readline()
    while process.poll() is None and not (tmp_path / ".out.partial").exists():
        time.sleep(0.001)
    with pytest.raises(SurgeryError, match="another run is writing this output"):
        OutputFolder.begin(tmp_path / "out", "f", 0)
    process.kill()
    process.wait()
    process.stdout.close()
    OutputFolder.begin(tmp_path / "out", "f", 0).abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB: room for the margin and 8 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_at_allocation(small_disk: Path) -> None:
    header, _ = encode_header([("a", "U8", (40 << 20,))])
    with OutputFolder.begin(small_disk / "out", "f", 0) as folder, pytest.raises(SurgeryError) as caught:
        folder.create_weights("m.safetensors", header, len(header) + (40 << 20))
    assert caught.value.message == (
        f"disk full while writing `m.safetensors` for `{small_disk}/out`: no space left on device"
    )
    assert list(small_disk.iterdir()) == []


def test_full_disk_half_way_while_small_files_are_written(small_disk: Path) -> None:
    with (
        OutputFolder.begin(small_disk / "out", "f", 0) as folder,
        pytest.raises(SurgeryError, match="disk full"),
    ):
        for number in range(100):
            folder.write_file(f"{number}.json", bytes(1 << 20))
    assert list(small_disk.iterdir()) == []


def test_full_disk_half_way_through_a_sparse_file(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system that cannot reserve blocks: the disk fills during the positioned writes.
    monkeypatch.delattr(os, "posix_fallocate")
    header, (start,) = encode_header([("a", "U8", (40 << 20,))])
    with OutputFolder.begin(small_disk / "out", "f", 0) as folder:
        weights = folder.create_weights("m.safetensors", header, start + (40 << 20))
        with pytest.raises(SurgeryError, match=r"disk full while writing `m\.safetensors`"):
            for number in range(40):
                weights.write_at(start + (number << 20), bytes(1 << 20))
    assert list(small_disk.iterdir()) == []


def test_small_disk_is_refused_up_front(small_disk: Path) -> None:
    with pytest.raises(SurgeryError, match=r"need 36\.78 MB of free space at `.*/disk`, got 25\.17 MB"):
        OutputFolder.begin(small_disk / "out", "f", 20_000_000)
    assert list(small_disk.iterdir()) == []


def test_a_run_fits_after_the_disk_was_full(small_disk: Path) -> None:
    with OutputFolder.begin(small_disk / "out", "f", 0) as folder, pytest.raises(SurgeryError):
        for number in range(100):
            folder.write_file(f"{number}.json", bytes(1 << 20))
    writer_program.write(small_disk / "out", resume=False, overwrite=False)
    assert files_of(small_disk / "out") == writer_program.expected_files()
