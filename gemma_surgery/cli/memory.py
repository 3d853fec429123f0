"""The process's peak of anonymous memory: what it asked for itself, without mapped or cached files."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

SAMPLE_SECONDS = 0.01
_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Anonymous resident bytes now; elsewhere than on Linux the peak resident set so far."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Samples anonymous memory while the context is open; `peak_bytes` is the highest seen."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._take()

    def _take(self) -> None:
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
