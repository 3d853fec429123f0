"""The journal: whole lines count, damage ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_surgery.checkpoint import (
    OutputFolder,
)
from gemma_surgery.checkpoint.journal import Journal


@pytest.fixture
def journal_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ".out.journal"
    journal = Journal.acquire(path)
    journal.start("print")
    for number in range(3):
        journal.append(f"unit {number}", {"sha256": f"{number}", "spans": [[number, 1]]})
    journal.close()
    yield path


def load(path: Path) -> Journal:
    journal = Journal.acquire(path)
    journal.load()
    journal.close()
    return journal


def test_journal_keeps_order_and_content(journal_path: Path) -> None:
    journal = load(journal_path)
    assert journal.fingerprint == "print"
    assert list(journal.completed.items())[2] == ("unit 2", {"sha256": "2", "spans": [[2, 1]]})


def test_journal_cut_at_any_byte_keeps_the_whole_lines_before(journal_path: Path) -> None:
    data = journal_path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        journal_path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        journal = load(journal_path)
        assert (journal.fingerprint is not None) == (whole >= 1)
        assert len(journal.completed) == max(whole - 1, 0)
        assert journal_path.stat().st_size == (ends[whole - 1] if whole else 0)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"garbage\n", b"00000000 {}\n", b"\xff" * 100])
def test_journal_ends_at_damage_and_goes_on_behind_it(journal_path: Path, tail: bytes) -> None:
    with journal_path.open("ab") as file:
        file.write(tail)
    journal = Journal.acquire(journal_path)
    journal.load()
    journal.append("unit 3", {})
    journal.close()
    assert list(load(journal_path).completed) == ["unit 0", "unit 1", "unit 2", "unit 3"]


def test_journal_line_with_one_changed_byte_is_not_believed(journal_path: Path) -> None:
    data = bytearray(journal_path.read_bytes())
    place = data.index(b'"sha256":"1"') + 10
    data[place] ^= 1
    journal_path.write_bytes(data)
    assert list(load(journal_path).completed) == ["unit 0"]


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", 0) as folder:

        def work(first: int) -> None:
            for number in range(100):
                folder.record(f"{first}/{number}", {"n": number})

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(load(tmp_path / ".out.journal").completed) == 400
