"""Positioned reads from the weight files of a checkpoint."""

from __future__ import annotations

import os
import stat
import sys
import threading
from types import TracebackType
from typing import NoReturn

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError

# Linux transfers at most 0x7ffff000 bytes per call; smaller pieces keep readers interruptible.
MAX_READ_BYTES = 256 * 1024 * 1024


class SourceFiles:
    """The open weight files of a checkpoint, read at given offsets by any number of threads.

    Files are opened read-only when the context is entered, and refused if their size is no longer the one
    that the header was checked against.

    Attributes:
        read_bytes: bytes read so far.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.read_bytes = 0
        self._checkpoint = checkpoint
        self._fds: dict[str, int] = {}
        self._count_lock = threading.Lock()

    def __enter__(self) -> SourceFiles:
        try:
            for name, header in self._checkpoint.files.items():
                self._open(name, header.file_bytes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; no read may be under way."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes) from `offset` of a file on.

        Raises:
            SurgeryError: the file ends early because it changed after it was opened, or the disk fails.
        """
        fd = self._fd(file)
        view = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
        size_bytes = len(view)
        done = 0
        while done < size_bytes:
            try:
                count = _read_at(fd, view[done : done + MAX_READ_BYTES], offset + done)
            except OSError as error:
                _refuse(f"cannot read `{file}` at byte {offset + done:,}: {os_reason(error)}")
            if count == 0:
                _refuse(
                    f"need {size_bytes:,} bytes at byte {offset:,} of `{file}`, got {done:,}",
                    "the file became shorter while it was read; restore it and run again",
                )
            done += count
        with self._count_lock:
            self.read_bytes += size_bytes

    def _fd(self, file: str) -> int:
        fd = self._fds.get(file)
        if fd is None:
            _refuse(
                f"need an open weight file, got `{file}` (outside `with SourceFiles(...)`, or no such file)"
            )
        return fd

    def _open(self, name: str, file_bytes: int) -> None:
        path = self._checkpoint.path / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._fds[name] = fd
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != file_bytes:
                _refuse(
                    f"need `{name}` as it was when its header was read, {file_bytes:,} bytes,"
                    f" got {status.st_size:,}",
                    "the checkpoint is being written by something else; run again when that is done",
                )
            if sys.platform == "linux":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            _refuse(f"cannot read `{path}`: {os_reason(error)}")


def _read_at(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    data = os.pread(fd, len(view), offset)
    view[: len(data)] = data
    return len(data)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("checkpoint", message, hint) from None
