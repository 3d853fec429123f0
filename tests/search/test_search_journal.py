"""The journal of a search: kept, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.search.journal import Journal, Measured

SEEN = Measured(1000, 0.25, 0.01)


def test_measurements_are_there_when_the_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, "a").add("plan", SEEN)
    assert Journal(path, "a").get("plan") == SEEN
    assert Journal(path, "a").get("other") is None


def test_a_line_that_a_crash_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "a")
    journal.add("first", SEEN)
    journal.add("second", SEEN)
    path.write_text(path.read_text()[:-20])
    resumed = Journal(path, "a")
    assert resumed.get("first") == SEEN
    assert resumed.get("second") is None
    resumed.add("third", SEEN)
    assert Journal(path, "a").get("third") == SEEN


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, "a").add("plan", SEEN)
    with pytest.raises(SurgeryError, match="need the journal of this search"):
        Journal(path, "b")


def test_a_journal_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="cannot write"):
        Journal(tmp_path / "missing" / "journal", "a")
