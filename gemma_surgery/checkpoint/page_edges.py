"""Pages that several writes share, kept in memory until they are whole."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator

import numpy as np

PAGE_BYTES = 4096


class PageEdges:
    """Fragments of pages, gathered from several threads.

    A buffered write takes the file's lock that direct writes share, and so waits for all of them. Neighbours
    in a file are written soon after one another: their common page is whole then, and can go out directly.
    """

    def __init__(self) -> None:
        self._pages: dict[int, tuple[memoryview, np.ndarray[tuple[int], np.dtype[np.bool_]]]] = {}
        self._lock = threading.Lock()

    def add(self, offset: int, fragment: memoryview) -> memoryview | None:
        """Keep a fragment that lies inside one page.

        Args:
            offset: in the file, of its first byte.
            fragment: at most one page, not reaching over a page boundary.

        Returns:
            The page, aligned in memory, if the fragment completed it; else None.
        """
        page, begin = divmod(offset, PAGE_BYTES)
        with self._lock:
            if page not in self._pages:
                self._pages[page] = memoryview(mmap.mmap(-1, PAGE_BYTES)), np.zeros(PAGE_BYTES, np.bool_)
            data, known = self._pages[page]
            data[begin : begin + len(fragment)] = fragment
            known[begin : begin + len(fragment)] = True
            if not known.all():
                return None
            del self._pages[page]
            return data

    def drain(self) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and bytes of every run that is known of pages that never became whole."""
        with self._lock:
            pages, self._pages = self._pages, {}
        for page, (data, known) in sorted(pages.items()):
            bounds = np.flatnonzero(np.diff(np.r_[False, known, False]))
            for begin, end in bounds.reshape(-1, 2).tolist():
                yield page * PAGE_BYTES + begin, data[begin:end]
