"""Small files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_surgery.checkpoint import whole_file
from gemma_surgery.checkpoint.whole_file import write_whole
from gemma_surgery.errors import SurgeryError


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for text in ("first\n", "zweiter Text: ä\n"):
        write_whole(path, text, "search")
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("parent", ["missing", "a file"])
def test_a_folder_that_is_none_is_one_error(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a file").write_text("x")
    with pytest.raises(SurgeryError, match=r"\[search\] cannot write `.*a\.toml`: n"):
        write_whole(tmp_path / parent / "a.toml", "text", "search")


def test_what_was_there_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.toml"
    path.write_text("before")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_file.Path, "write_text", full)
    with pytest.raises(SurgeryError, match="no space left on device"):
        write_whole(path, "after", "report")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
