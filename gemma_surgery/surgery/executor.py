"""The one streamed pass: each source byte read once, each output byte written once."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from gemma_surgery.checkpoint.json_types import Json, read_small_file
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.checkpoint.weights_file import WeightsFile
from gemma_surgery.checkpoint.writing import OutputFolder
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.manifest import build_manifest
from gemma_surgery.surgery.plan import Plan, PlannedTensor
from gemma_surgery.surgery.produce import Producer
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.scores import check_equal, compute_scores
from gemma_surgery.surgery.selection import Indices, Scores, Selection
from gemma_surgery.surgery.stream import Sink

# Two workers per core: while one waits for the disk the other computes.
WORKERS_PER_CORE = 2
# Neighbouring tensors that one worker writes in one go.
BATCH_BYTES = 24 << 20


class Progress(Protocol):
    """Where the pass reports how far it is."""

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


@dataclass
class Outcome:
    """What a pass did and what it took.

    `phase_seconds` is wall time, `worker_seconds` the sum over workers per activity.
    """

    seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    resumed_bytes: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    tensor_seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def default_threads() -> int:
    """Workers that keep every usable core and the disk busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores * WORKERS_PER_CORE


def execute(
    plan: Plan,
    target: Path,
    *,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Write the planned checkpoint to `target`.

    The bytes depend on the plan alone, not on `threads`. A crash leaves the source untouched and the
    target absent; the unfinished work lies in a hidden folder beside it that `resume` continues.

    Raises:
        SurgeryError: the target exists, the disk is full, a requirement of the plan does not hold,
            the source changed under the pass, or a value to be quantized is not finite.
    """
    begin = time.perf_counter()
    outcome = Outcome()
    report = progress or Silent()
    with SourceFiles(plan.source) as files:
        prepared = prepare(plan, files, threads or default_threads(), outcome)
        required = sum(file.size_bytes for file in plan.files) + _side_bytes(plan)
        with OutputFolder.begin(
            target, _identity(plan), required, resume=resume, overwrite=overwrite
        ) as folder:
            weights = {
                file.name: folder.create_weights(file.name, file.header, file.size_bytes)
                for file in plan.files
            }
            report.begin(plan.output_bytes)
            with _phase(outcome, "weights and files"):
                side = _run_pass(plan, files, folder, weights, prepared, report, outcome)
            report.finish()
            with _phase(outcome, "flush and rename"):
                folder.commit(build_manifest(plan, outcome.hashes, side))
            outcome.written_bytes = folder.written_bytes
            outcome.notes += folder.notes
        outcome.read_bytes = files.read_bytes
    outcome.seconds = time.perf_counter() - begin
    return outcome


@dataclass(frozen=True)
class Prepared:
    """What has to be known before the first tensor is produced."""

    threads: int
    scores: dict[Ranking, Scores]

    def resolve(self, selection: Selection) -> Indices | None:
        """Final indices of a selection."""
        return selection.resolve(self.scores.__getitem__)


def prepare(plan: Plan, files: SourceFiles, threads: int, outcome: Outcome) -> Prepared:
    """Check the plan's requirements on the weights and compute its scores."""
    run_all = _Pool(threads).run
    with _phase(outcome, "checks"):
        run_all([_check_job(plan, index, files) for index in range(len(plan.requirements))])
    with _phase(outcome, "scores"):
        scores = compute_scores(plan, files, run_all)
    return Prepared(threads, scores)


def rederive(
    plan: Plan, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, dict[str, str]]:
    """The sha256 that every stored part must have, computed from the source without writing anything."""
    outcome = Outcome()
    report = progress or Silent()
    with SourceFiles(plan.source) as files:
        prepared = prepare(plan, files, threads or default_threads(), outcome)
        report.begin(plan.output_bytes)
        jobs = _tensor_jobs(plan, files, _Discard(), prepared, report, outcome, lambda name, hashes: None, [])
        _Pool(prepared.threads).run(jobs)
        report.finish()
    return outcome.hashes


class _Discard:
    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Nothing is kept."""


class _FolderSink:
    def __init__(self, weights: dict[str, WeightsFile]) -> None:
        self._weights = weights

    def write(self, file: str, offset: int, data: memoryview) -> None:
        self._weights[file].write_at(offset, data)


def _run_pass(
    plan: Plan,
    files: SourceFiles,
    folder: OutputFolder,
    weights: dict[str, WeightsFile],
    prepared: Prepared,
    report: Progress,
    outcome: Outcome,
) -> dict[str, str]:
    done = _still_good(plan, folder, prepared.threads)
    outcome.hashes.update(done)
    outcome.resumed_bytes = sum(p.tensor.size_bytes for p in plan.tensors if p.tensor.name in done)
    report.advance(outcome.resumed_bytes)

    def record(name: str, hashes: dict[str, str]) -> None:
        entry: dict[str, Json] = dict(hashes)
        folder.record(name, entry)

    side: dict[str, str] = {}
    clocks: list[dict[str, float]] = []
    jobs = [_side_job(plan, folder, side)]
    jobs += _tensor_jobs(plan, files, _FolderSink(weights), prepared, report, outcome, record, clocks)
    _Pool(prepared.threads).run(jobs)
    outcome.worker_seconds = _total(clocks)
    return side


def _tensor_jobs(
    plan: Plan,
    files: SourceFiles,
    sink: Sink,
    prepared: Prepared,
    report: Progress,
    outcome: Outcome,
    record: Callable[[str, dict[str, str]], None],
    clocks: list[dict[str, float]],
) -> list[Callable[[], None]]:
    """One job per batch of neighbours."""
    own = threading.local()
    lock = threading.Lock()

    def producer() -> Producer:
        if not hasattr(own, "producer"):
            own.producer = Producer(plan.source, files, sink, prepared.resolve, report.advance)
            with lock:
                clocks.append(own.producer.clock.seconds)
        found: Producer = own.producer
        return found

    def job(batch: list[PlannedTensor]) -> None:
        done: dict[str, dict[str, str]] = {}
        for planned in batch:
            begin = time.perf_counter()
            done[planned.tensor.name] = _produce(producer(), planned)
            outcome.tensor_seconds[planned.tensor.name] = time.perf_counter() - begin
        producer().flush()
        for name, hashes in done.items():
            record(name, hashes)
            outcome.hashes[name] = hashes

    open_tensors = [planned for planned in plan.tensors if planned.tensor.name not in outcome.hashes]
    return [partial(job, batch) for batch in _interleaved(_batches(open_tensors))]


def _produce(producer: Producer, planned: PlannedTensor) -> dict[str, str]:
    try:
        return producer.produce(planned)
    except ValueError as error:
        raise SurgeryError("compress", f"cannot encode `{planned.tensor.name}`: {error}") from error


def _batches(tensors: list[PlannedTensor]) -> list[list[PlannedTensor]]:
    """Neighbouring tensors together, so that a worker writes long runs: what a crash can lose is a batch."""
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
        kinds[any(planned.tensor.method == "requantize" for planned in batch)].append(batch)
    placed = [
        ((index + 0.5) / len(kind), batch) for kind in kinds.values() for index, batch in enumerate(kind)
    ]
    return [batch for _, batch in sorted(placed, key=lambda item: item[0])]


def _total(clocks: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for clock in clocks:
        for activity, seconds in clock.items():
            total[activity] = total.get(activity, 0.0) + seconds
    return total


def _check_job(plan: Plan, index: int, files: SourceFiles) -> Callable[[], None]:
    return lambda: check_equal(plan.requirements[index], plan, files)


def _side_job(plan: Plan, folder: OutputFolder, hashes: dict[str, str]) -> Callable[[], None]:
    def write(name: str, data: bytes) -> None:
        folder.write_file(name, data)
        hashes[name] = hashlib.sha256(data).hexdigest()

    def run() -> None:
        for name, generated in sorted(plan.generated.items()):
            write(name, generated.make())
        for name, data in sorted(plan.documents.items()):
            write(name, data)
        for name in plan.copied:
            write(name, read_small_file(plan.source.path / name))

    return run


def _identity(plan: Plan) -> str:
    """What a resumed run must share: the plan, and source files that were not written to since."""
    stamps = [(name, (plan.source.path / name).stat().st_mtime_ns) for name in sorted(plan.source.files)]
    return hashlib.sha256(f"{plan.sha256} {stamps}".encode()).hexdigest()


def _side_bytes(plan: Plan) -> int:
    copied = sum((plan.source.path / name).stat().st_size for name in plan.copied)
    replaced = [name for name in plan.generated if (plan.source.path / name).is_file()]
    generated = sum((plan.source.path / name).stat().st_size for name in replaced)
    return copied + generated + sum(map(len, plan.documents.values()))


def _still_good(plan: Plan, folder: OutputFolder, threads: int) -> dict[str, dict[str, str]]:
    """Journalled tensors whose bytes on disk still have the recorded hash."""
    good: dict[str, dict[str, str]] = {}

    def check(planned: PlannedTensor, hashes: dict[str, str]) -> None:
        if all(
            folder.recheck(
                part.file, [(part.start, part.component.size_bytes)], hashes.get(part.component.name, "")
            )
            for part in planned.parts
        ):
            good[planned.tensor.name] = hashes

    jobs: list[Callable[[], None]] = []
    for planned in plan.tensors:
        record = folder.completed.get(planned.tensor.name)
        if record is not None:
            jobs.append(partial(check, planned, {name: str(value) for name, value in record.items()}))
    _Pool(threads).run(jobs)
    return good


class _Pool:
    """Runs jobs on threads; the first error stops the others at their next job and is raised."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def run(self, jobs: list[Callable[[], None]]) -> None:
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

        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self._threads, len(jobs)))]
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


@contextmanager
def _phase(outcome: Outcome, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        outcome.phase_seconds[name] = time.perf_counter() - begin
