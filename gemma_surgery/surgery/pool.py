"""Threads that run jobs, and how far they are."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Protocol


class Progress(Protocol):
    """Where a pass reports how far it is."""

    def begin(self, total_bytes: int) -> None:
        """The pass will produce `total_bytes`."""
        ...

    def advance(self, size_bytes: int) -> None:
        """`size_bytes` more are done; called from several threads."""
        ...

    def finish(self) -> None:
        """Nothing more will come."""
        ...


class Silent:
    """No progress report."""

    def begin(self, total_bytes: int) -> None:
        """Ignore."""

    def advance(self, size_bytes: int) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


def default_threads() -> int:
    """One worker per usable core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(jobs: Iterable[Callable[[], None]], threads: int) -> None:
    """Run jobs on threads, in order of start; the first error stops the others at their next job.

    Raises:
        BaseException: the first error of a job.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                job()
            except BaseException as error:
                errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, waiting.qsize()))]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException as error:
        errors.append(error)
        for worker in workers:
            worker.join()
        raise
    if errors:
        raise errors[0]
