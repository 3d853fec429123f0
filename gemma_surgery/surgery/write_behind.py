"""Writing on threads of its own, so that the workers compute while the disk is busy."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from gemma_surgery.checkpoint.weights_file import aligned_buffer

# Enough to keep a solid-state disk's queue filled.
WRITER_THREADS = 3


class Sink(Protocol):
    """Where finished bytes go."""

    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Store `data` at `offset` of `file`; called from several threads on disjoint ranges."""
        ...


class WriteBehind:
    """Takes filled buffers, writes them, and hands them out again: memory stays bounded.

    Args:
        sink: where the bytes go.
        buffer_bytes: size of each buffer.
        num_buffers: how many there are, in workers' hands and on their way to the disk.

    Attributes:
        seconds: of writing, summed over the threads.
    """

    def __init__(self, sink: Sink, buffer_bytes: int, num_buffers: int) -> None:
        self.seconds = 0.0
        self._sink = sink
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(num_buffers):
            self._free.put(aligned_buffer(buffer_bytes))
        self._pool = ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="write")
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self.check()

    def take_buffer(self) -> memoryview:
        """An aligned buffer to fill; waits until one is free."""
        return self._free.get()

    def write(self, file: str, offset: int, buffer: memoryview, begin: int, stop: int) -> Future[None]:
        """Write `buffer[begin:stop]` and take the buffer back."""
        self.check()
        return self._pool.submit(self._write, file, offset, buffer, begin, stop)

    def when_written(self, writes: list[Future[None]], then: Callable[[], None]) -> None:
        """Call `then` once all of `writes` have succeeded; it may run on any thread."""
        left = len(writes)
        if not left:
            then()

        def count(done: Future[None]) -> None:
            nonlocal left
            with self._lock:
                left -= 1
                is_last = left == 0
            if is_last and self._error is None and not done.cancelled():
                self._guard(then)

        for write in writes:
            write.add_done_callback(count)

    def check(self) -> None:
        """Raise what went wrong in a write, if anything did."""
        if self._error is not None:
            raise self._error

    def _write(self, file: str, offset: int, buffer: memoryview, begin: int, stop: int) -> None:
        start = time.perf_counter()
        if self._error is None:
            self._guard(lambda: self._sink.write(file, offset, buffer[begin:stop]))
        self._free.put(buffer)
        with self._lock:
            self.seconds += time.perf_counter() - start

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self._error = self._error or error
