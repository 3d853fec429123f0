"""Producing every tensor of a plan: batches of neighbours on workers, written behind them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.plan import Plan, PlannedTensor
from gemma_surgery.surgery.pool import run_all
from gemma_surgery.surgery.produce import Producer
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Indices, Scores, Selection
from gemma_surgery.surgery.stream import BUFFER_BYTES, BUFFERS_PER_WORKER
from gemma_surgery.surgery.write_behind import Sink, WriteBehind

# Neighbouring tensors that one worker produces in one go: what a crash can lose.
BATCH_BYTES = 24 << 20
# Methods that keep the processor busy.
COMPUTED = ("requantize", "solve")

Hashes = dict[str, dict[str, str]]


@dataclass
class TensorPass:
    """One pass over the tensors of a plan.

    Attributes:
        plan: what to produce.
        files: the open source.
        scores: of every ranking of the plan.
        on_bytes: told of bytes as they are produced, from several threads.
        on_batch: told of finished tensors with the sha256 of their parts, once their bytes are written.
        tensor_seconds: worker seconds by tensor, afterwards.
        worker_seconds: seconds by activity, summed over workers and writers, afterwards.
    """

    plan: Plan
    files: SourceFiles
    scores: dict[Ranking, Scores]
    on_bytes: Callable[[int], None]
    on_batch: Callable[[Hashes], None]
    tensor_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)

    def run(
        self, tensors: list[PlannedTensor], sink: Sink, threads: int, first: Callable[[], None] | None = None
    ) -> None:
        """Produce `tensors` into `sink`, and do the job `first` beside them.

        Raises:
            SurgeryError: the source, the sink or a value did not allow it.
        """
        clocks: list[dict[str, float]] = []
        with WriteBehind(sink, BUFFER_BYTES, BUFFERS_PER_WORKER * threads) as writer:
            jobs = self._jobs(tensors, writer, clocks)
            run_all([first, *jobs] if first is not None else jobs, threads)
        for clock in (*clocks, {"write": writer.seconds}):
            for activity, seconds in clock.items():
                self.worker_seconds[activity] = self.worker_seconds.get(activity, 0.0) + seconds

    def _jobs(
        self, tensors: list[PlannedTensor], writer: WriteBehind, clocks: list[dict[str, float]]
    ) -> list[Callable[[], None]]:
        own, solving = threading.local(), threading.Lock()

        def job(batch: list[PlannedTensor]) -> None:
            if not hasattr(own, "producer"):
                own.producer = Producer(
                    self.plan.source, self.files, writer, self._resolve, self.on_bytes, solving
                )
                clocks.append(own.producer.clock.seconds)
            producer: Producer = own.producer
            done: Hashes = {}
            for planned in batch:
                begin = time.perf_counter()
                done[planned.tensor.name] = _produce(producer, planned)
                self.tensor_seconds[planned.tensor.name] = time.perf_counter() - begin
            producer.flush(partial(self.on_batch, done))

        return [partial(job, batch) for batch in _interleaved(_batches(tensors))]

    def _resolve(self, selection: Selection) -> Indices | None:
        return selection.resolve(self.scores.__getitem__)


def _produce(producer: Producer, planned: PlannedTensor) -> dict[str, str]:
    try:
        return producer.produce(planned)
    except ValueError as error:
        raise SurgeryError("compress", f"cannot encode `{planned.tensor.name}`: {error}") from error


def _batches(tensors: list[PlannedTensor]) -> list[list[PlannedTensor]]:
    """Neighbouring tensors together, so that a worker writes long runs."""
    batches: list[list[PlannedTensor]] = []
    filled = 0
    for planned in tensors:
        size_bytes = planned.tensor.size_bytes
        starts_file = batches and planned.parts[0].file != batches[-1][-1].parts[0].file
        if not batches or starts_file or filled + size_bytes > BATCH_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(planned)
        filled += size_bytes
    return batches


def _interleaved(batches: list[list[PlannedTensor]]) -> list[list[PlannedTensor]]:
    """Batches that compute spread evenly among those that only copy: processor and disk are busy together."""
    kinds: dict[bool, list[list[PlannedTensor]]] = {False: [], True: []}
    for batch in batches:
        kinds[any(planned.tensor.method in COMPUTED for planned in batch)].append(batch)
    placed = [
        ((index + 0.5) / len(kind), batch) for kind in kinds.values() for index, batch in enumerate(kind)
    ]
    return [batch for _, batch in sorted(placed, key=lambda item: item[0])]
