"""The machines that share one calibration: which samples are whose, and sums over all of them."""

from __future__ import annotations

import os
from typing import TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.rank_watch import RankWatch, alarm, ring_host

Values: TypeAlias = "npt.NDArray[np.float64]"

# Values exchanged in one message.
MESSAGE_VALUES = 1 << 22
# For all ranks to be there; starting a process takes far less.
MEET_SECONDS = 60.0
# What `mlx.launch` tells the processes it starts, by backend.
LAUNCH_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Ranks:
    """One process, or all that `mlx.launch` started.

    Sample `i` belongs to rank `i % size`. Sums are the same on all ranks. If one dies, the others end with an
    error.

    Args:
        group: of `mx.distributed.init()`; None for one process alone.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group if group is not None and group.size() > 1 else None
        self.rank = 0 if self._group is None else self._group.rank()
        self.size = 1 if self._group is None else self._group.size()
        host = None if self._group is None else ring_host()
        self._watch = None if host is None else RankWatch(self.rank, self.size, host, self._largest)

    def finish(self) -> None:
        """Wait until every rank is here, and part."""
        self.any(False)
        if self._watch is not None:
            self._watch.close()

    def sum(self, values: Values) -> Values:
        """The sum over ranks of a small array, added in float64 in the order of ranks."""
        if self._group is None:
            return values
        total: Values = self._all_gather(values.reshape(1, -1), 1).sum(axis=0)
        return total.reshape(values.shape)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; the same answer on all."""
        return bool(self.sum(np.asarray([float(flag)]))[0] > 0)

    def agree(self, number: int) -> bool:
        """Whether all ranks have the same number."""
        numbers = self.gather(np.asarray([[float(number)]]))
        return bool((numbers == numbers[0]).all())

    def sum_large(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The sum over ranks of a large array, in place, in float32."""
        if self._group is None:
            return values
        flat = values.reshape(-1)
        for start in range(0, len(flat), MESSAGE_VALUES):
            piece = flat[start : start + MESSAGE_VALUES]
            piece[:] = np.asarray(mx.distributed.all_sum(mx.array(piece), group=self._group))
        return values

    def gather(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Rows `[n, F]` of each rank, one per own sample, as `[sum of n, F]` in the order of samples."""
        if self._group is None:
            return rows
        counts = self._all_gather(np.asarray([[float(len(rows))]]), 1)[:, 0].astype(int)
        most = int(counts.max())
        gathered = self._all_gather(rows, most).reshape(self.size, most, rows.shape[1])
        # Rank 0 has samples 0, size, ...: by place, then by rank.
        owners = [(place, rank) for place in range(most) for rank in range(self.size) if place < counts[rank]]
        return np.stack([gathered[rank, place] for place, rank in owners])

    def _largest(self, number: int) -> int:
        return int(self._all_gather(np.asarray([[float(number)]]), 1).max())

    def _all_gather(self, rows: npt.NDArray[np.floating], count: int) -> Values:
        """Rows of all ranks, each filled up to `count` with zeros, `[size * count, F]`."""
        padded = np.zeros((count, rows.shape[1]), np.float64)
        padded[: len(rows)] = rows
        # As pairs of float32: what the backends can send.
        sent = mx.array(padded.view(np.float32))
        received: Values = np.asarray(mx.distributed.all_gather(sent, group=self._group)).view(np.float64)
        return received


def launched_ranks() -> Ranks:
    """The ranks that `mlx.launch` started this process among; one rank when it was started alone."""
    if not any(name in os.environ for name in LAUNCH_VARIABLES):
        return Ranks()
    with alarm(MEET_SECONDS, "need all ranks to meet, but not all came"):
        return Ranks(mx.distributed.init(strict=True))
