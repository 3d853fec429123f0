"""The machines that share one calibration: which samples are whose, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.rank_watch import RankWatch, alarm, ring_host
from gemma_surgery.errors import SurgeryError

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
        if self._group is None:
            return True
        numbers = self._all_gather(np.asarray([[float(number)]]), 1)
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

    def gather(self, rows: npt.NDArray[np.floating], places: Sequence[float]) -> npt.NDArray[np.floating]:
        """Rows of all ranks in order.

        Args:
            rows: this rank's, `[n, F]`; n may differ from rank to rank and be zero.
            places: of these rows among all, `[n]`; where two rows of one rank share one, they stay in order.

        Returns:
            float64 `[sum of n, F]`, the same on all ranks.
        """
        if self._group is None:
            return rows
        counts = self._all_gather(np.asarray([[float(len(rows))]]), 1)[:, 0].astype(int)
        keyed = np.column_stack([np.asarray(places, np.float64), rows])
        gathered = self._all_gather(keyed, int(counts.max())).reshape(self.size, -1, keyed.shape[1])
        kept = np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])
        ordered: Values = kept[np.argsort(kept[:, 0], kind="stable"), 1:]
        return ordered

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
        try:
            return Ranks(mx.distributed.init(strict=True))
        except RuntimeError as error:
            raise SurgeryError("ranks", f"cannot meet the other ranks: {error}") from None
