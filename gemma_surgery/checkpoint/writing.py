"""A crash-safe output folder: absent, resumable or complete, never half there.

Everything is written in a hidden sibling of the target and renamed into place in one step, after the
manifest, which is written last. A killed run leaves the sibling and its journal; the next run continues it or
starts over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from gemma_surgery.checkpoint.journal import Journal
from gemma_surgery.checkpoint.json_types import Json, os_reason
from gemma_surgery.checkpoint.model_folder import MANIFEST_NAME
from gemma_surgery.checkpoint.target import (
    Places,
    check_beforehand,
    check_partial,
    check_space,
    check_target,
    recover_overwrite,
    remove_tree,
    sync_folder,
)
from gemma_surgery.checkpoint.weights_file import WeightsFile, read_pages, sync_file
from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class OutputFolder:
    """An output under construction; use it as a context manager, and end with `commit`.

    Left without `commit`, the partial folder stays for a later run with `resume`, unless the disk was full:
    then it is removed.

    Attributes:
        path: the partial folder.
        target: what it becomes.
        completed: unit -> record of what an earlier run finished; `recheck` each before relying on it.
        notes: what happened to earlier runs, one sentence each.
        written_bytes: bytes written so far, headers and small files included.
    """

    def __init__(
        self, places: Places, journal: Journal, *, overwrite: bool, direct: bool, notes: list[str]
    ) -> None:
        self.path = places.partial
        self.target = places.target
        self.completed: dict[str, dict[str, Json]] = dict(journal.completed)
        self.notes = notes
        self.written_bytes = 0
        self._places = places
        self._journal = journal
        self._overwrite = overwrite
        self._direct = direct
        self._weights: dict[str, WeightsFile] = {}
        self._count_lock = threading.Lock()
        self._fail_lock = threading.Lock()
        self._full: SurgeryError | None = None

    @classmethod
    def begin(
        cls,
        target: Path,
        fingerprint: str,
        required_bytes: int,
        *,
        resume: bool = False,
        overwrite: bool = False,
        direct: bool = True,
    ) -> OutputFolder:
        """Check that an output can be written, and start or continue it.

        Args:
            target: the folder to make; its parents are created.
            fingerprint: identifies source and plan; only a run with the same one is continued.
            required_bytes: size of the finished output.
            resume: continue an interrupted run. Without it, what such a run left is discarded.
            overwrite: replace an existing target when all is done; until then it stays as it is.
            direct: let whole pages bypass the page cache where the file system can.

        Raises:
            SurgeryError: the target exists, the disk is too small, another run is writing it, or the
                interrupted run belongs to another plan. Nothing has been changed then.
        """
        places = Places.of(target)
        check_beforehand(places, overwrite)
        check_space(places, required_bytes)
        try:
            places.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _refuse(f"cannot create `{places.target.parent}`: {os_reason(error)}")
        journal = Journal.acquire(places.journal)
        notes: list[str] = []
        try:
            if not journal.is_locked:
                notes.append("this file system has no locks: two runs on one output are not kept apart")
            recover_overwrite(places, notes)
            check_target(places, overwrite)
            _start_or_continue(places, journal, fingerprint, resume, notes)
        except OSError as error:
            _release(journal, places)
            _refuse(f"cannot start the output `{places.target}`: {os_reason(error)}")
        except BaseException:
            _release(journal, places)
            raise
        return cls(places, journal, overwrite=overwrite, direct=direct, notes=notes)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_weights(self, name: str, header: bytes, total_bytes: int) -> WeightsFile:
        """Create a weights file at its final size, with its header.

        A file that an interrupted run left is kept if header and size are the same.

        Raises:
            SurgeryError: a bad name, a full disk or a failing one.
        """
        self._check(name)
        weights = WeightsFile(
            self.path / name,
            header,
            total_bytes,
            direct=self._direct,
            keep=True,
            on_written=self._count,
            on_error=self._failed,
        )
        if not weights.is_resumed:
            self._count(len(header))
        self._weights[name] = weights
        return weights

    def record(self, unit: str, record: Mapping[str, Json]) -> None:
        """Note in the journal that all bytes of a unit are written; any thread may call this.

        Fragments of its first and last pages may still be in memory: after a crash, `recheck` tells.

        Raises:
            SurgeryError: a full disk or a failing one.
        """
        self._check_not_full()
        try:
            self._journal.append(unit, record)
        except OSError as error:
            raise self._failed(error, self._places.journal.name) from None

    def recheck(self, file: str, spans: Iterable[tuple[int, int]], sha256: str) -> bool:
        """Return whether the bytes of a file, span after span, still have a recorded hash.

        Args:
            file: name in the output.
            spans: (start, size) in bytes.
            sha256: hexadecimal.
        """
        self._settle(file)
        digest = hashlib.sha256()
        try:
            for start, size_bytes in spans:
                for piece in read_pages(self.path / file, start, size_bytes, direct=self._direct):
                    digest.update(piece)
        except OSError:
            return False
        return digest.hexdigest() == sha256

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file, durable and whole or not at all.

        Raises:
            SurgeryError: a bad name, a full disk or a failing one.
        """
        self._write_whole(name, [data])

    def commit(self, manifest: bytes, manifest_name: str = MANIFEST_NAME) -> None:
        """Make the output durable and give it its name.

        Order: weights flushed, manifest, folder flushed, rename, journal removed. A kill at any point leaves
        the target absent or old with a partial folder that resumes, or the new one complete.

        Raises:
            SurgeryError: a full or failing disk, or the target has appeared meanwhile.
        """
        self._check_not_full()
        for weights in self._weights.values():
            weights.sync()
        self._close_weights()
        self.write_file(manifest_name, manifest)
        check_target(self._places, self._overwrite)
        try:
            sync_folder(self.path)
            self._rename_into_place()
        except OSError as error:
            raise self._failed(error, self.target.name) from None

    def abandon(self) -> None:
        """Remove everything written; an existing target stays as it is.

        Raises:
            SurgeryError: the partial folder cannot be removed.
        """
        self._close_weights()
        try:
            remove_tree(self.path)
        except OSError as error:
            _refuse(f"cannot remove `{self.path}`: {os_reason(error)}")
        self._journal.remove()

    def close(self) -> None:
        """Close all files; the partial folder stays for `resume` unless the disk was full."""
        self._close_weights()
        if self._full is not None:
            self.abandon()
        self._journal.close()

    def _rename_into_place(self) -> None:
        places = self._places
        is_replacing = os.path.lexists(places.target)
        if is_replacing:
            places.target.rename(places.replaced)
        try:
            places.partial.rename(places.target)
        except OSError:
            if is_replacing:
                places.replaced.rename(places.target)
            raise
        sync_folder(places.target.parent)
        self._journal.remove()
        try:
            remove_tree(places.replaced)
        except OSError as error:
            self.notes.append(f"could not remove the old output `{places.replaced}`: {os_reason(error)}")

    def _write_whole(self, name: str, pieces: Iterable[bytes]) -> None:
        self._check(name)
        temporary = self.path / f".{name}.tmp"
        try:
            fd = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            with os.fdopen(fd, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    self._count(len(piece))
                file.flush()
                sync_file(fd)
            temporary.replace(self.path / name)
        except OSError as error:
            raise self._failed(error, name) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _check(self, name: str) -> None:
        self._check_not_full()
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            _refuse(f"need a plain, visible file name in the output, got {literal(name)}")

    def _check_not_full(self) -> None:
        if self._full is not None:
            raise self._full

    def _count(self, size_bytes: int) -> None:
        with self._count_lock:
            self.written_bytes += size_bytes
        # A thread that had not noticed must not go on filling a folder that is gone.
        self._check_not_full()

    def _failed(self, error: OSError, name: str) -> SurgeryError:
        """Turn a failed write into the error to raise; a full disk frees its space at once."""
        if error.errno not in _DISK_FULL:
            return SurgeryError(
                "output",
                f"cannot write `{name}`: {os_reason(error)}",
                "what is written is kept; mend the cause and run again with `--resume`",
            )
        with self._fail_lock:
            if self._full is None:
                self._full = SurgeryError(
                    "output",
                    f"disk full while writing `{name}` for `{self.target}`: {os_reason(error)}",
                    "free some space, or choose an output on another disk; the unfinished output was removed",
                )
                # Files stay open until `close`: another thread may be inside a write.
                self._remove_quietly()
            return self._full

    def _remove_quietly(self) -> None:
        try:
            remove_tree(self.path)
        except OSError:
            # A thread created a file meanwhile; `close` removes the folder again.
            return

    def _settle(self, file: str) -> None:
        if file in self._weights:
            self._weights[file].settle()

    def _close_weights(self) -> None:
        while self._weights:
            weights = self._weights.popitem()[1]
            # What an interrupted run leaves should be whole; a disk that fails now has failed before.
            with contextlib.suppress(SurgeryError):
                weights.settle()
            weights.close()


def _start_or_continue(
    places: Places, journal: Journal, fingerprint: str, resume: bool, notes: list[str]
) -> None:
    has_partial = check_partial(places)
    journal.load()
    name = places.target.name
    if resume and has_partial and journal.fingerprint is not None:
        if journal.fingerprint != fingerprint:
            _refuse(
                f"the interrupted run for `{name}` has another source or plan"
                f" (fingerprint {journal.fingerprint[:12]}, need {fingerprint[:12]})",
                "run it again as it was, or without `--resume` to discard it and start over",
            )
        for leftover in places.partial.glob(".*"):
            leftover.unlink()
        notes.append(f"resumed an interrupted run for `{name}`: {len(journal.completed):,} units recorded")
        return
    if resume:
        notes.append(f"nothing to resume for `{name}`: started from the beginning")
    elif has_partial:
        notes.append(f"discarded an interrupted run for `{name}`")
    if has_partial:
        remove_tree(places.partial)
    places.partial.mkdir()
    journal.start(fingerprint)


def _release(journal: Journal, places: Places) -> None:
    """Give the lock back, leaving no journal that belongs to nothing."""
    if journal.is_empty or not os.path.lexists(places.partial):
        journal.remove()
    journal.close()


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("output", message, hint) from None
