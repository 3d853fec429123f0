"""What may stand where an output goes: targets, sources, locks and planted links."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_outputs import BODY, TOTAL, leftovers, make, write_all

from gemma_surgery.checkpoint import (
    OutputFolder,
    check_separate,
    open_checkpoint,
)
from gemma_surgery.errors import SurgeryError


def test_existing_target_is_refused_and_untouched(tmp_path: Path) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat()
    for resume in (False, True):
        with pytest.raises(SurgeryError, match="already exists") as caught:
            OutputFolder.begin(tmp_path / "out", "f", TOTAL, resume=resume)
        assert caught.value.hint == "choose another name, or replace it with `--overwrite`"
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert leftovers(tmp_path) == []


def test_overwrite_keeps_the_old_target_until_the_end(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, overwrite=True) as folder:
        write_all(folder)
        assert (tmp_path / "out" / "old").exists()
        folder.commit(b"{}")
    assert not (tmp_path / "out" / "old").exists()
    assert open_checkpoint(tmp_path / "out").read("a") == BODY.tobytes()
    assert leftovers(tmp_path) == []


def test_overwrite_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "Documents").mkdir(parents=True)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thoughts.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(home)
    messages = {
        "home": "got folder `Documents`",
        "notes": "got no checkpoint",
        "file": "need a folder to overwrite",
        "link": "need a folder to overwrite",
    }
    for name, message in messages.items():
        with pytest.raises(SurgeryError, match=message):
            OutputFolder.begin(tmp_path / name, "f", TOTAL, overwrite=True)
    assert (home / "Documents").is_dir()


@pytest.mark.parametrize("path", ["/", "/.."])
def test_target_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(SurgeryError, match="need the name of a new folder"):
        OutputFolder.begin(Path(path), "f", 0)


def test_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SurgeryError, match=r"cannot create `.*file`"):
        OutputFolder.begin(tmp_path / "file" / "out", "f", 0)


def test_target_and_source_must_be_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    check_separate(tmp_path / "out", source)
    check_separate(tmp_path / "source-2", source)
    for path, message in [
        (source, "for both"),
        (tmp_path / "link", "for both"),
        (source / "out", "outside the source"),
        (tmp_path / "link" / "out", "outside the source"),
        (source / ".." / "source", "for both"),
        (tmp_path, "holds the source"),
    ]:
        with pytest.raises(SurgeryError, match=message):
            check_separate(path, source)


def test_two_runs_on_one_target_do_not_mix(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as first:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(SurgeryError, match="another run is writing this output"):
                OutputFolder.begin(tmp_path / "out", "f", TOTAL, **options)
        write_all(first)
        OutputFolder.begin(tmp_path / "other", "f", TOTAL).abandon()
        first.commit(b"{}")
    assert open_checkpoint(tmp_path / "out").read("a") == BODY.tobytes()


def test_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL) as folder:
        write_all(folder)
        (tmp_path / "out").mkdir()
        with pytest.raises(SurgeryError, match="already exists"):
            folder.commit(b"{}")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out").rmdir()
    with OutputFolder.begin(tmp_path / "out", "f", TOTAL, resume=True) as folder:
        assert list(folder.completed) == ["a"]


def test_links_planted_at_our_names_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    (tmp_path / ".out.partial").symlink_to(victim)
    with pytest.raises(SurgeryError, match="got something else there"):
        OutputFolder.begin(tmp_path / "out", "f", TOTAL)
    (tmp_path / ".out.partial").unlink()
    (tmp_path / ".out.journal").symlink_to(victim / "precious")
    with pytest.raises(SurgeryError, match="cannot create"):
        OutputFolder.begin(tmp_path / "out", "f", TOTAL)
    assert (victim / "precious").exists()
