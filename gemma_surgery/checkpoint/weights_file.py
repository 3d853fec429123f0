"""Positioned, parallel writes into one preallocated weights file.

With `direct`, the whole pages of a write bypass the page cache (O_DIRECT): they cost no memory and leave no
dirty pages to flush at the end. The fragments of pages at its ends, which a neighbouring write may share, are
kept until the neighbour completes them; what is left of them at the end goes through the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gemma_surgery.checkpoint.page_edges import PAGE_BYTES, PageEdges
from gemma_surgery.errors import SurgeryError

BOUNCE_BYTES = 4 * 1024 * 1024
# Linux transfers at most 0x7ffff000 bytes per call.
MAX_WRITE_BYTES = 1024 * 1024 * 1024
# 0 where the system has no such flag (macOS).
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_NOT_SUPPORTED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP}


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return zeroed, page-aligned, writable memory.

    Data for file offset `o` is written without a copy if it starts `o % PAGE_BYTES` bytes into such a buffer.
    """
    return memoryview(mmap.mmap(-1, max(size_bytes, 1)))[:size_bytes]


class WeightsFile:
    """One weights file under construction: the header is in place, tensors are written in any order.

    Attributes:
        path: of the file, inside the partial folder.
        total_bytes: its final size, allocated from the start.
        header_bytes: what the header takes; tensors are written behind it.
        is_resumed: the file was left by an earlier run with the same header, and kept.
        is_direct: whole pages bypass the page cache.
    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        total_bytes: int,
        *,
        direct: bool,
        keep: bool,
        on_written: Callable[[int], None],
        on_error: Callable[[OSError, str], SurgeryError],
    ) -> None:
        self.path = path
        self.total_bytes = total_bytes
        self.header_bytes = len(header)
        self._on_written = on_written
        self._on_error = on_error
        self._bounce = threading.local()
        self._edges = PageEdges()
        self._fd = -1
        self._direct_fd = -1
        self._direct_works = direct and _O_DIRECT != 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            if direct and hasattr(fcntl, "F_NOCACHE"):
                fcntl.fcntl(self._fd, fcntl.F_NOCACHE, 1)
            self.is_resumed = keep and self._has(header)
            if not self.is_resumed:
                os.ftruncate(self._fd, 0)
                _allocate(self._fd, total_bytes)
                self._write_cached(0, memoryview(header))
            if self._direct_works:
                self._open_direct()
        except OSError as error:
            self.close()
            raise on_error(error, path.name) from None

    @property
    def is_direct(self) -> bool:
        """Whether whole pages bypass the page cache; turns False where the file system cannot."""
        return self._direct_works

    def write_at(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write bytes at a place behind the header; threads may write different places at once.

        Fragments of pages may stay in memory until `sync`.

        Args:
            offset: absolute file offset of the first byte.
            buffer: C-contiguous bytes. No copy is made if its address and `offset` agree modulo `PAGE_BYTES`.

        Raises:
            SurgeryError: outside the file's tensors, a full disk, or a failing one.
        """
        view = memoryview(buffer)
        size_bytes = view.nbytes
        if size_bytes == 0:
            return
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if offset < self.header_bytes or offset + size_bytes > self.total_bytes:
            raise SurgeryError(
                "output",
                f"need a write inside bytes {self.header_bytes:,} to {self.total_bytes:,},"
                f" got {offset:,} to {offset + size_bytes:,} in `{self.path.name}`",
            )
        first = -(-offset // PAGE_BYTES) * PAGE_BYTES
        last = (offset + size_bytes) // PAGE_BYTES * PAGE_BYTES
        try:
            if not self._direct_works:
                self._write_cached(offset, view)
            elif last < first:
                self._write_fragment(offset, view)
            else:
                self._write_fragment(offset, view[: first - offset])
                self._write_direct(first, view[first - offset : last - offset])
                self._write_fragment(last, view[last - offset :])
        except OSError as error:
            raise self._on_error(error, self.path.name) from None
        self._on_written(size_bytes)

    def sync(self) -> None:
        """Wait until everything written is on the disk.

        Raises:
            SurgeryError: the disk is full or failing.
        """
        self.settle()
        try:
            sync_file(self._fd)
        except OSError as error:
            raise self._on_error(error, self.path.name) from None

    def settle(self) -> None:
        """Put the fragments that are kept in memory into the file, for readers to see.

        Raises:
            SurgeryError: the disk is full or failing.
        """
        try:
            for offset, run in self._edges.drain():
                self._write_cached(offset, run)
        except OSError as error:
            raise self._on_error(error, self.path.name) from None

    def close(self) -> None:
        """Close the file; no write may be under way."""
        fds, self._fd, self._direct_fd = (self._fd, self._direct_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _has(self, header: bytes) -> bool:
        if os.fstat(self._fd).st_size != self.total_bytes:
            return False
        return os.pread(self._fd, len(header), 0) == header

    def _open_direct(self) -> None:
        try:
            self._direct_fd = os.open(self.path, os.O_WRONLY | _O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self._direct_works = False

    def _write_cached(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done : done + MAX_WRITE_BYTES], offset + done)

    def _write_fragment(self, offset: int, view: memoryview) -> None:
        if len(view) == 0:
            return
        page = self._edges.add(offset, view)
        if page is not None:
            self._write_pages(offset // PAGE_BYTES * PAGE_BYTES, page)

    def _write_direct(self, offset: int, view: memoryview) -> None:
        """Write whole pages at a page boundary, through an aligned copy if the memory is not aligned."""
        is_aligned = np.frombuffer(view, np.uint8).ctypes.data % PAGE_BYTES == 0
        piece_bytes = MAX_WRITE_BYTES if is_aligned else BOUNCE_BYTES
        for begin in range(0, len(view), piece_bytes):
            piece = view[begin : begin + piece_bytes]
            self._write_pages(offset + begin, piece if is_aligned else self._bounced(piece))

    def _write_pages(self, offset: int, pages: memoryview) -> None:
        done = 0
        while done < len(pages):
            # After a short write the rest may start inside a page: it is still this call's alone.
            if not self._direct_works or done % PAGE_BYTES:
                self._write_cached(offset + done, pages[done:])
                return
            try:
                done += os.pwrite(self._direct_fd, pages[done:], offset + done)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                self._direct_works = False

    def _bounced(self, piece: memoryview) -> memoryview:
        buffer: memoryview | None = getattr(self._bounce, "buffer", None)
        if buffer is None:
            buffer = self._bounce.buffer = aligned_buffer(BOUNCE_BYTES)
        buffer[: len(piece)] = piece
        return buffer[: len(piece)]


def read_pages(path: Path, start: int, size_bytes: int, *, direct: bool) -> Iterator[memoryview]:
    """Yield the bytes `[start, start + size_bytes)` of a file, piece by piece, in a buffer that is reused.

    With `direct` they come from the disk: reading ahead must not leave pages in the cache that direct writes
    to their neighbours would have to evict.

    Raises:
        OSError: as the reads do; also when the file is too short.
    """
    fd = _open_to_read(path, direct)
    try:
        buffer = aligned_buffer(BOUNCE_BYTES)
        position, end = start, start + size_bytes
        while position < end:
            page_start = position // PAGE_BYTES * PAGE_BYTES
            wanted_bytes = -(-(end - page_start) // PAGE_BYTES) * PAGE_BYTES
            count = _read_some(fd, buffer[:wanted_bytes], page_start)
            usable = min(page_start + count, end) - position
            if usable <= 0:
                raise OSError(errno.EIO, "the file is too short")
            begin = position - page_start
            yield buffer[begin : begin + usable].toreadonly()
            position += usable
    finally:
        os.close(fd)


def sync_file(fd: int) -> None:
    """Flush a file to the disk itself; on macOS, fsync alone stops at the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    os.fsync(fd)


def _allocate(fd: int, total_bytes: int) -> None:
    """Reserve the file's blocks, so that a full disk shows now and not after an hour."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, total_bytes)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    os.ftruncate(fd, total_bytes)


def _open_to_read(path: Path, direct: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    if direct and _O_DIRECT != 0:
        try:
            return os.open(path, flags | _O_DIRECT)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    return os.open(path, flags)


def _read_some(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = os.pread(fd, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)
