"""The journal of an unfinished output: who is writing, for which plan, and what is done so far.

One append-only file beside the target. Its lock keeps two runs apart; its lines survive a kill. A line is
the CRC-32 of its JSON in hexadecimal, a space, the JSON. Reading stops at the first line that is not whole,
so a torn or zero-filled end costs the units behind it and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from gemma_surgery.checkpoint.json_types import Json, JsonProblem, decode_object, os_reason
from gemma_surgery.errors import SurgeryError

FORMAT_VERSION = 1
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Journal:
    """An open, locked journal file.

    Attributes:
        path: of the file; it exists as long as the output is unfinished.
        is_locked: False on file systems that know no locks.
        fingerprint: of the run that started the journal, None if it has not been started.
        completed: unit -> record, in the order in which they were written.
    """

    def __init__(self, path: Path, fd: int, is_locked: bool) -> None:
        self.path = path
        self.is_locked = is_locked
        self.fingerprint: str | None = None
        self.completed: dict[str, dict[str, Json]] = {}
        self._fd = fd
        self._lock = threading.Lock()

    @classmethod
    def acquire(cls, path: Path) -> Journal:
        """Open or create the journal and take its lock.

        Raises:
            SurgeryError: another run holds the lock, or the file cannot be created.
        """
        while True:
            try:
                # O_NOFOLLOW: a link planted here must not become a file that we truncate.
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                _refuse(f"cannot create `{path}`: {os_reason(error)}")
            is_locked = True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                _refuse(
                    f"another run is writing this output: `{path}` is locked",
                    "wait for it to end, or choose another output folder",
                )
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    os.close(fd)
                    _refuse(f"cannot lock `{path}`: {os_reason(error)}")
                is_locked = False
            # A run that ended between our open and our lock has unlinked the file that we hold.
            if _is_still_at(fd, path):
                return cls(path, fd, is_locked)
            os.close(fd)

    def load(self) -> None:
        """Read what an earlier run left, and cut off a torn end."""
        data = self._read_all()
        good_bytes = 0
        for line in data.splitlines(keepends=True):
            entry = _decode_line(line)
            if entry is None:
                break
            if good_bytes == 0:
                fingerprint = entry.get("fingerprint")
                if entry.get("format") != FORMAT_VERSION or not isinstance(fingerprint, str):
                    break
                self.fingerprint = fingerprint
            else:
                unit, record = entry.get("unit"), entry.get("record")
                if not isinstance(unit, str) or not isinstance(record, dict):
                    break
                self.completed[unit] = record
            good_bytes += len(line)
        if good_bytes != len(data):
            os.ftruncate(self._fd, good_bytes)

    def start(self, fingerprint: str) -> None:
        """Forget everything and begin a journal for `fingerprint`."""
        os.ftruncate(self._fd, 0)
        self.fingerprint = fingerprint
        self.completed = {}
        self._append({"format": FORMAT_VERSION, "fingerprint": fingerprint})
        os.fsync(self._fd)

    def append(self, unit: str, record: Mapping[str, Json]) -> None:
        """Note that a unit is written; any thread may call this.

        Raises:
            OSError: as the write does.
        """
        with self._lock:
            self._append({"unit": unit, "record": dict(record)})
            self.completed[unit] = dict(record)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written to it."""
        return os.fstat(self._fd).st_size == 0

    def remove(self) -> None:
        """Delete the file and release the lock, in this order."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Release the lock and keep the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, entry: dict[str, Json]) -> None:
        text = json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode()
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        done = os.write(self._fd, line)
        if done != len(line):
            # Only a full disk or a signal cuts so short a write; the torn line ends the journal.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _read_all(self) -> bytes:
        pieces: list[bytes] = []
        offset = 0
        while piece := os.pread(self._fd, 1 << 20, offset):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)


def _decode_line(line: bytes) -> dict[str, Json] | None:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(text):
        return None
    try:
        return decode_object(text)
    except JsonProblem:
        return None


def _is_still_at(fd: int, path: Path) -> bool:
    try:
        here, there = os.fstat(fd), path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("output", message, hint) from None
