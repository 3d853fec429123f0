"""Where an output is built, and what may be done to the folder that it will become.

For a target `dir/NAME`, all in `dir` and so on one file system:
`.NAME.partial/` the output under construction, `.NAME.journal` its journal and lock,
`.NAME.replaced/` the old target for the moment between two renames of an overwrite.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.checkpoint.model_folder import CONFIG_NAME, MANIFEST_NAME
from gemma_surgery.checkpoint.wording import human_bytes
from gemma_surgery.errors import SurgeryError

# Folder entries, the journal and rounding to blocks, beside the bytes that the plan counts.
MARGIN_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Places:
    """The paths that one output uses."""

    target: Path
    partial: Path
    journal: Path
    replaced: Path

    @classmethod
    def of(cls, target: Path) -> Places:
        """Derive the paths from the target.

        Raises:
            SurgeryError: the target has no name of its own, like `/` or `..`.
        """
        full = Path(os.path.normpath(Path(target).expanduser().absolute()))
        if not full.name:
            _refuse(f"need the name of a new folder as output, got `{target}`")
        parent, name = full.parent, full.name
        return cls(
            full, parent / f".{name}.partial", parent / f".{name}.journal", parent / f".{name}.replaced"
        )


def check_separate(target: Path, source: Path) -> None:
    """Refuse a target that is the source, lies in it, or holds it: the source is never written.

    Raises:
        SurgeryError: naming both.
    """
    real_target, real_source = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if real_target == real_source:
        _refuse(
            f"need an output apart from the source, got `{target}` for both", "choose another output folder"
        )
    if real_source in real_target.parents:
        _refuse(
            f"need an output outside the source `{source}`, got `{target}`", "choose another output folder"
        )
    if real_target in real_source.parents:
        _refuse(f"output `{target}` holds the source `{source}`", "choose another output folder")


def check_beforehand(places: Places, overwrite: bool) -> None:
    """Refuse early what `check_target` will refuse; an interrupted run's answer is known under its lock only.

    Raises:
        SurgeryError: naming what stands there.
    """
    if not os.path.lexists(places.journal) and not os.path.lexists(places.replaced):
        check_target(places, overwrite)


def check_target(places: Places, overwrite: bool) -> None:
    """Refuse an existing target, or with `overwrite` one that is not evidently a checkpoint.

    Raises:
        SurgeryError: naming what stands there.
    """
    target = places.target
    if not os.path.lexists(target):
        return
    if not overwrite:
        _refuse(f"output `{target}` already exists", "choose another name, or replace it with `--overwrite`")
    if target.is_symlink() or not target.is_dir():
        _refuse(f"need a folder to overwrite, got something else at `{target}`", "remove it by hand")
    try:
        with os.scandir(target) as entries:
            names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError as error:
        _refuse(f"cannot list `{target}`: {os_reason(error)}")
    folders = sorted(name for name, is_folder in names.items() if is_folder and not name.startswith("."))
    is_checkpoint = CONFIG_NAME in names and any(name.endswith(".safetensors") for name in names)
    # A mistyped `-o ~` must not cost a home folder.
    if names and (folders or not (MANIFEST_NAME in names or is_checkpoint)):
        found = f"folder `{folders[0]}`" if folders else "no checkpoint"
        _refuse(
            f"need a checkpoint or an empty folder to overwrite, got {found} in `{target}`",
            "choose another name, or remove it by hand",
        )


def check_space(places: Places, required_bytes: int) -> None:
    """Refuse to start what the disk cannot hold; what an interrupted run left counts as free.

    Raises:
        SurgeryError: with needed and free bytes.
    """
    folder = places.target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        status = os.statvfs(folder)
        free_bytes = status.f_bavail * status.f_frsize + _allocated_bytes(places.partial)
    except OSError as error:
        _refuse(f"cannot find the free space at `{folder}`: {os_reason(error)}")
    need_bytes = required_bytes + MARGIN_BYTES
    if need_bytes > free_bytes:
        _refuse(
            f"need {human_bytes(need_bytes)} of free space at `{folder}`, got {human_bytes(free_bytes)}",
            f"free {human_bytes(need_bytes - free_bytes)}, or choose an output on another disk",
        )


def recover_overwrite(places: Places, notes: list[str]) -> None:
    """Finish or undo the renames of an overwrite that was killed between them.

    Raises:
        SurgeryError: the old target is set aside and an unknown folder has taken its place.
    """
    if not os.path.lexists(places.replaced):
        return
    if not os.path.lexists(places.target):
        places.replaced.rename(places.target)
        notes.append(f"restored `{places.target.name}`, which an interrupted overwrite had set aside")
        return
    if not (places.target / MANIFEST_NAME).is_file():
        _refuse(
            f"an interrupted overwrite set `{places.target}` aside as `{places.replaced.name}`,"
            " and another folder has taken its name",
            "keep one of the two and remove the other by hand",
        )
    remove_tree(places.replaced)
    notes.append(f"removed `{places.replaced.name}`, which a finished overwrite had left")


def check_partial(places: Places) -> bool:
    """Return whether a partial folder is left over.

    Raises:
        SurgeryError: something else has its name.
    """
    if not os.path.lexists(places.partial):
        return False
    if places.partial.is_symlink() or not places.partial.is_dir():
        _refuse(
            f"need `{places.partial}` for the unfinished output, got something else there",
            "remove it by hand",
        )
    return True


def remove_tree(folder: Path) -> None:
    """Remove a folder and what is in it, following no link.

    Raises:
        OSError: as the removal does.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        # Some network file systems refuse; the renames are then as durable as they make them.
        return
    finally:
        os.close(fd)


def _allocated_bytes(folder: Path) -> int:
    if folder.is_symlink() or not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("output", message, hint) from None
