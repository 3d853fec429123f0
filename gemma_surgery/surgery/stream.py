"""Bytes on their way out: hashed while hot, written in large page-aligned pieces."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from gemma_surgery.checkpoint.page_edges import PAGE_BYTES
from gemma_surgery.checkpoint.weights_file import aligned_buffer
from gemma_surgery.surgery.plan import Placed
from gemma_surgery.surgery.write_behind import WriteBehind

# One tile of source or of output: measured best of 256 KiB to 2 MiB; calls cost more below, caches above.
TILE_BYTES = 2 << 20
# What one write hands to the disk: unbuffered writes below this wait more than they transfer.
WRITE_BYTES = 4 << 20
BUFFER_BYTES = WRITE_BYTES + TILE_BYTES
# Three runs a worker, and as many on their way to the disk.
BUFFERS_PER_WORKER = 6


@dataclass
class Clock:
    """Seconds per activity of one worker, to tell where the time goes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time of a block to `activity`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - begin


class Buffer:
    """Page-aligned memory that a worker reuses from tile to tile."""

    def __init__(self, size_bytes: int) -> None:
        self.view = aligned_buffer(size_bytes)

    def at_least(self, size_bytes: int) -> memoryview:
        """The first `size_bytes` bytes; a buffer that is too small is replaced."""
        if size_bytes > len(self.view):
            self.view = aligned_buffer(size_bytes)
        return self.view[:size_bytes]


class FileStream:
    """A contiguous run of an output file under construction.

    The buffer mirrors the file: byte `i` of it stands at a file offset that is congruent to `i` modulo
    the page size, which is what unbuffered writes need. As tensors follow each other without gaps, a
    stream goes on from one to the next, and only the ends of a run fall inside pages.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._buffer = memoryview(b"")
        self._file = ""
        self._offset = self._begin = self._end = 0

    @property
    def position(self) -> tuple[str, int]:
        """File and offset that the next byte goes to."""
        return self._file, self._offset + self._end - self._begin

    def seek(self, file: str, offset: int) -> None:
        """Write what is pending and go on at another place."""
        if self.position != (file, offset):
            self.flush()
            self._file, self._offset = file, offset
            self._begin = self._end = offset % PAGE_BYTES

    def reserve(self, size_bytes: int) -> memoryview:
        """Room for the next `size_bytes` bytes; fill it, then call `advance`."""
        if self._end + size_bytes > len(self._buffer):
            self._write(self._end - self._end % PAGE_BYTES)
        if not self._buffer:
            self._buffer = self._output.take_buffer()
        if self._end + size_bytes > len(self._buffer):
            # One row that is larger than a buffer: it travels in one of its own.
            pending = bytes(self._buffer[self._begin : self._end])
            self._buffer = aligned_buffer(self._end + size_bytes)
            self._buffer[self._begin : self._end] = pending
        return self._buffer[self._end : self._end + size_bytes]

    def advance(self, size_bytes: int) -> None:
        """The reserved bytes are there."""
        self._end += size_bytes

    def flush(self) -> None:
        """Write everything that is pending."""
        self._write(self._end)

    def _write(self, stop: int) -> None:
        """Hand the buffer over up to `stop`, and keep what is behind it for the next one."""
        if stop <= self._begin:
            return
        full, rest = self._buffer, bytes(self._buffer[stop : self._end])
        self._output.write(self._file, self._offset, full, self._begin, stop)
        self._buffer = memoryview(b"")
        self._offset += stop - self._begin
        self._begin = self._offset % PAGE_BYTES
        self._end = self._begin + len(rest)
        if rest:
            self._buffer = self._output.take_buffer()
            self._buffer[self._begin : self._end] = rest


class PartStream:
    """The bytes of one stored tensor, in order, with their hash."""

    def __init__(self, output: Output, part: Placed) -> None:
        self._output, self._part = output, part
        self._stream: FileStream | None = None
        self._sha256 = hashlib.sha256()
        self._missing_bytes = part.component.size_bytes

    def reserve(self, size_bytes: int) -> memoryview:
        """Room for the next `size_bytes` bytes; fill it, then call `advance`."""
        if self._stream is None:
            self._stream = self._output.take_stream(self._part.file, self._part.start)
        self._room = self._stream.reserve(size_bytes)
        return self._room

    def advance(self) -> None:
        """The reserved bytes are there."""
        assert self._stream is not None
        with self._output.clock.measure("hash"):
            self._sha256.update(self._room)
        self._stream.advance(len(self._room))
        self._output.on_bytes(len(self._room))
        self._missing_bytes -= len(self._room)
        if self._missing_bytes == 0:
            self._output.give_back(self._stream)

    def append(self, data: memoryview) -> None:
        """Copy `data` through, tile by tile."""
        for start in range(0, len(data), TILE_BYTES):
            piece = data[start : start + TILE_BYTES]
            self.reserve(len(piece))[:] = piece
            self.advance()

    def finish(self) -> str:
        """The sha256 of the whole tensor, whose bytes must all have come."""
        if self._missing_bytes:
            raise RuntimeError(
                f"`{self._part.component.name}`: {self._missing_bytes} bytes fewer than planned were produced"
            )
        return self._sha256.hexdigest()


class Output:
    """The open runs of one worker: up to three, as a quantized matrix grows in three places at once."""

    def __init__(self, writer: WriteBehind, clock: Clock, on_bytes: Callable[[int], None]) -> None:
        self.clock, self.on_bytes = clock, on_bytes
        self._writer = writer
        self._free = [FileStream(self) for _ in range(3)]
        self._writes: list[Future[None]] = []

    def take_stream(self, file: str, offset: int) -> FileStream:
        """A run that ends at `offset` if there is one, else another that goes on from there."""
        stream = next((s for s in self._free if s.position == (file, offset)), self._free[0])
        self._free.remove(stream)
        stream.seek(file, offset)
        return stream

    def give_back(self, stream: FileStream) -> None:
        """The tensor that took the run is complete."""
        self._free.append(stream)

    def take_buffer(self) -> memoryview:
        """A buffer to fill, as soon as the disk has taken one."""
        with self.clock.measure("wait for the disk"):
            return self._writer.take_buffer()

    def write(self, file: str, offset: int, buffer: memoryview, begin: int, stop: int) -> None:
        """Send a buffer on its way."""
        self._writes.append(self._writer.write(file, offset, buffer, begin, stop))

    def flush(self, then: Callable[[], None]) -> None:
        """Send everything that is pending; `then` is called when all since the last time is written."""
        for stream in self._free:
            stream.flush()
        writes, self._writes = self._writes, []
        self._writer.when_written(writes, then)
