"""What commands share: tables and JSON to stdout, progress and remarks to stderr.

rich is imported where it is used: a program that asks for `--json` need not wait for it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

# Lines between two plain progress reports, as shares of the whole.
PLAIN_STEP = 0.1
GIB = 1 << 30


def out() -> Console:
    """Data: stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def remarks() -> Console:
    """Everything that is not data: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on one line: the last line of stdout."""
    print(json.dumps(document, ensure_ascii=False))


def print_table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
    """A table whose columns are (heading, `left` or `right`)."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for heading, justify in columns:
        table.add_column(
            heading, justify="right" if justify == "right" else "left", no_wrap=justify == "right"
        )
    for row in rows:
        table.add_row(*row)
    out().print(table)


def megabytes(size_bytes: int) -> str:
    """Decimal megabytes, as model savings are usually quoted."""
    return f"{size_bytes / 1e6:,.2f}"


def size(size_bytes: int) -> str:
    """Exact bytes with GiB beside them."""
    return f"{size_bytes:,} bytes ({size_bytes / GIB:.3f} GiB)"


class TransferProgress:
    """Bytes done, bytes per second and time left: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, quiet: bool = False) -> None:
        self._label, self._quiet = label, quiet
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._done = self._total = 0
        self._next = PLAIN_STEP
        self._begin = 0.0

    def begin(self, total: int) -> None:
        """Show the bar or start counting."""
        self._total, self._done, self._next, self._begin = total, 0, PLAIN_STEP, time.perf_counter()
        if self._quiet or not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(self._label),
            BarColumn(),
            *self._amount_columns(),
            TimeRemainingColumn(),
            console=remarks(),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=total)
        self._bar.start()

    def advance(self, amount: int) -> None:
        """Called from several threads."""
        with self._lock:
            self._done += amount
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            elif not self._quiet and self._total and self._done / self._total >= self._next:
                self._line()
                self._next = self._done / self._total + PLAIN_STEP

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self) -> None:
        seconds = time.perf_counter() - self._begin
        rate = self._done / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate else 0.0
        print(
            f"{self._label}: {self._done / self._total:4.0%}  {self._amount(rate)}  {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def _amount(self, rate: float) -> str:
        return f"{self._done / 1e6:,.0f} MB  {rate / 1e9:.2f} GB/s"

    def _amount_columns(self) -> list[ProgressColumn]:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        return [DownloadColumn(), TransferSpeedColumn()]


class CountProgress(TransferProgress):
    """The same for things that are counted, not weighed."""

    def _amount(self, rate: float) -> str:
        return f"{self._done:,} of {self._total:,}"

    def _amount_columns(self) -> list[ProgressColumn]:
        from rich.progress import MofNCompleteColumn

        return [MofNCompleteColumn()]
