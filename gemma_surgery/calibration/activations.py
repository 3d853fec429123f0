"""Hidden states of every sample between two layers: in memory, or in a file where they outgrow it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError

States = npt.NDArray[np.float32]


class Activations:
    """One float32 array `[T, E]` per sample, replaced layer by layer.

    Args:
        lengths: T of each sample.
        width: E.
        budget_bytes: held in memory up to this size; beyond it in an unnamed file, of which the system keeps
            in memory what fits.
        folder: where that file is; None: where temporary files go.

    Raises:
        SurgeryError: the file cannot be made, or the disk is full.
    """

    def __init__(
        self, lengths: Sequence[int], width: int, budget_bytes: int, folder: Path | None = None
    ) -> None:
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
        total = int(self._starts[-1])
        self.size_bytes = total * width * 4
        self.is_spilled = self.size_bytes > budget_bytes
        self._file: IO[bytes] | None = None
        if not self.is_spilled:
            self._all: States = np.zeros((total, width), np.float32)
            return
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, self.size_bytes)
            else:
                self._file.truncate(self.size_bytes)
        except OSError as error:
            self.close()
            where = folder or Path(tempfile.gettempdir())
            raise SurgeryError(
                "calibration",
                f"need {self.size_bytes:,} bytes for activations in `{where}`: {os_reason(error)}",
                "free the space, set TMPDIR to another disk, or use fewer or shorter samples",
            ) from None
        self._all = np.memmap(self._file, np.float32, "r+", shape=(total, width))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, sample: int) -> States:
        """The states of one sample, a view."""
        return self._all[self._starts[sample] : self._starts[sample + 1]]

    def __setitem__(self, sample: int, states: States) -> None:
        self._all[self._starts[sample] : self._starts[sample + 1]] = states

    @property
    def all(self) -> States:
        """The states of all samples, one after the other, a view `[sum of T, E]`."""
        return self._all

    def close(self) -> None:
        """Give the space back."""
        self._all = np.zeros((0, 0), np.float32)
        if self._file is not None:
            self._file.close()
            self._file = None
