"""The one streamed pass: each source byte read once, each output byte written once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gemma_surgery.checkpoint.json_types import Json, read_small_file
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.checkpoint.weights_file import WeightsFile
from gemma_surgery.checkpoint.writing import OutputFolder
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.manifest import build_manifest
from gemma_surgery.surgery.plan import Plan, PlannedTensor
from gemma_surgery.surgery.pool import Progress, Silent, default_threads, run_all
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.scores import check_equal, compute_scores
from gemma_surgery.surgery.selection import Scores
from gemma_surgery.surgery.tensor_pass import Hashes, TensorPass


@dataclass
class Outcome:
    """What a pass did and what it took.

    `phase_seconds` is wall time, `worker_seconds` the sum over workers and writers per activity.
    """

    seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    resumed_bytes: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    tensor_seconds: dict[str, float] = field(default_factory=dict)
    hashes: Hashes = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
    workers = threads or default_threads()
    required_bytes = sum(file.size_bytes for file in plan.files) + _side_bytes(plan)
    with (
        SourceFiles(plan.source) as files,
        OutputFolder.begin(
            target, _identity(plan), required_bytes, resume=resume, overwrite=overwrite
        ) as folder,
    ):
        try:
            scores = _prepare(plan, files, workers, outcome)
        except SurgeryError:
            if not folder.completed:
                folder.abandon()
            raise
        report.begin(plan.output_bytes)
        with _phase(outcome, "weights and files"):
            side = _run_pass(plan, files, folder, scores, workers, report, outcome)
        report.finish()
        with _phase(outcome, "flush and rename"):
            folder.commit(build_manifest(plan, outcome.hashes, side))
        outcome.written_bytes = folder.written_bytes
        outcome.read_bytes = files.read_bytes
        outcome.notes += folder.notes
    outcome.seconds = time.perf_counter() - begin
    return outcome


def rederive(plan: Plan, *, threads: int | None = None, progress: Progress | None = None) -> Hashes:
    """The sha256 that every stored part must have, computed from the source without writing anything."""
    outcome = Outcome()
    report = progress or Silent()
    workers = threads or default_threads()
    with SourceFiles(plan.source) as files:
        scores = _prepare(plan, files, workers, outcome)
        report.begin(plan.output_bytes)
        tensor_pass = TensorPass(plan, files, scores, report.advance, outcome.hashes.update)
        tensor_pass.run(list(plan.tensors), _Discard(), workers)
        report.finish()
    return outcome.hashes


def _prepare(plan: Plan, files: SourceFiles, threads: int, outcome: Outcome) -> dict[Ranking, Scores]:
    """Check the plan's requirements on the weights and compute its scores, before anything is written."""
    with _phase(outcome, "checks"):
        run_all([partial(check_equal, need, plan, files) for need in plan.requirements], threads)
    with _phase(outcome, "scores"):
        return compute_scores(plan, files, partial(run_all, threads=threads))


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
    scores: dict[Ranking, Scores],
    threads: int,
    report: Progress,
    outcome: Outcome,
) -> dict[str, str]:
    """Write weights and side files; returns the sha256 of the side files by name."""
    weights = {
        file.name: folder.create_weights(file.name, file.header, file.size_bytes) for file in plan.files
    }
    outcome.hashes.update(_still_good(plan, folder, threads))
    open_tensors = [planned for planned in plan.tensors if planned.tensor.name not in outcome.hashes]
    outcome.resumed_bytes = plan.output_bytes - sum(planned.tensor.size_bytes for planned in open_tensors)
    report.advance(outcome.resumed_bytes)

    def on_batch(done: Hashes) -> None:
        for name, hashes in done.items():
            record: dict[str, Json] = dict(hashes)
            folder.record(name, record)
        outcome.hashes.update(done)

    side: dict[str, str] = {}
    tensor_pass = TensorPass(plan, files, scores, report.advance, on_batch)
    tensor_pass.run(open_tensors, _FolderSink(weights), threads, first=_side_job(plan, folder, side))
    outcome.tensor_seconds = tensor_pass.tensor_seconds
    outcome.worker_seconds = tensor_pass.worker_seconds
    return side


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


def _still_good(plan: Plan, folder: OutputFolder, threads: int) -> Hashes:
    """Journalled tensors whose bytes on disk still have the recorded hash."""
    good: Hashes = {}

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
    run_all(jobs, threads)
    return good


@contextmanager
def _phase(outcome: Outcome, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        outcome.phase_seconds[name] = time.perf_counter() - begin
