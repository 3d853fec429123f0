"""Making a profile: layer after layer, each one's statistics on disk before the next is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration import profile
from gemma_surgery.calibration.activations import Activations
from gemma_surgery.calibration.ranks import Ranks
from gemma_surgery.calibration.samples import Sample
from gemma_surgery.calibration.statistics import LayerStatistics
from gemma_surgery.calibration.stream import SPILL_BYTES, LayerStream
from gemma_surgery.checkpoint.header import encode_header
from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.surgery.pool import Progress

# Bytes of states are copied to disk after a layer only when it took longer than this since the last copy.
SAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        data_sha256: identity of the calibration data, kept in the profile.
        hessians: patterns of linear layers whose Hessians are collected, e.g. ``*.mlp.down_proj``.
        resume: go on after the last finished layer of an interrupted run.
    """

    data_sha256: str
    hessians: tuple[str, ...] = ()
    resume: bool = False
    spill_bytes: int = SPILL_BYTES


@dataclass
class Times:
    """Seconds by activity."""

    seconds: dict[str, float] = field(default_factory=dict)
    resumed_layers: int = 0


def make_profile(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    path: Path,
    request: Request,
    *,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Times:
    """Measure a checkpoint and write its profile.

    The file appears when everything is in it. Until then it is a hidden neighbour, with the journal and the
    hidden states from which `resume` continues.

    Args:
        checkpoint: opened whole if samples show images.
        samples: of all ranks, the same on each; this one takes its share.
        path: the profile; written by rank 0.
        request: see there.
        ranks: the machines that share the work.
        progress: told of this rank's tokens times layers.

    Raises:
        SurgeryError: no sample for a rank, a file cannot be written, or the run to resume was another one.
    """
    ranks = ranks or Ranks()
    own = list(samples[ranks.rank :: ranks.size])
    if not own:
        raise SurgeryError(
            "profile", f"need at least one sample per rank, got {len(samples)} for {ranks.size} ranks"
        )
    stream = LayerStream(checkpoint, spill_bytes=request.spill_bytes, progress=progress)
    family = Gemma3(checkpoint.config)
    has_images = any(sample.pixels is not None for sample in samples)
    metadata = {
        profile.FINGERPRINT_KEY: checkpoint.fingerprint,
        profile.DATA_KEY: request.data_sha256,
        profile.TOKENS_KEY: str(sum(len(sample.tokens) for sample in samples)),
        "samples": str(len(samples)),
    }
    entries = _entries(family, has_images, request.hessians)
    identity = _identity(metadata, entries, samples, ranks)
    times = Times()
    with _Work(path, entries, metadata, identity, ranks.rank) as work:
        observer = LayerStatistics(ranks, lambda linear: _matches(linear, request.hessians), work.put)
        begin = perf_counter()
        states = work.resumed(own, stream, request) if request.resume else None
        start = 0 if states is None else work.layers_done
        if not ranks.agree(start):
            # One of them died while they were saving: together they can only begin again.
            states, start = None, 0
        times.resumed_layers = start
        if states is None:
            states = stream.embed(own, observer)
            times.seconds["embeddings and vision"] = perf_counter() - begin
        begin = saved = perf_counter()
        for index in range(start, family.num_layers):
            stream.layer(index, own, states, observer)
            if ranks.any(perf_counter() - saved > SAVE_SECONDS):
                work.save(index + 1, states)
                saved = perf_counter()
        times.seconds["decoder layers"] = perf_counter() - begin
        states.close()
        work.commit()
    # Whoever started the ranks may look for the file when the first of them ends.
    ranks.finish()
    return times


def _matches(linear: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(linear, pattern) for pattern in patterns)


def _entries(
    family: Gemma3, has_images: bool, hessians: Sequence[str]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every statistic, in the order of layers."""
    layers = []
    attention_width = family.text("num_attention_heads") * family.text("head_dim")
    for index, width in enumerate(family.mlp_widths):
        linears = {"mlp.down_proj": width, "self_attn.o_proj": attention_width}
        layers.append((family.layer_prefix(index), width, family.text("num_attention_heads"), linears))
    if has_images:
        width, hidden = family.vision("intermediate_size"), family.vision("hidden_size")
        linears = {"mlp.fc2": width, "self_attn.out_proj": hidden}
        heads = family.vision("num_attention_heads")
        for index in range(family.vision("num_hidden_layers")):
            layers.append((family.vision_layer_prefix(index), width, heads, linears))
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for prefix, width, heads, linears in layers:
        entries += [
            (f"{prefix}{profile.INFLUENCE}", "F32", (1,)),
            (f"{prefix}mlp.{profile.ACTIVATION}", "F32", (width,)),
            (f"{prefix}self_attn.{profile.HEADS}", "F32", (heads,)),
        ]
        for name, columns in linears.items():
            linear = prefix + name
            entries += [
                (f"{linear}.{profile.INPUT_MEAN}", "F32", (columns,)),
                (f"{linear}.{profile.FLUCTUATION}", "F32", (columns,)),
            ]
            if _matches(linear, hessians):
                entries += [
                    (f"{linear}.{profile.DIAGONAL}", "F32", (columns,)),
                    (f"{linear}.{profile.CORRELATION}", "I16", (columns * (columns - 1) // 2,)),
                ]
    return entries


def _identity(
    metadata: dict[str, str],
    entries: list[tuple[str, str, tuple[int, ...]]],
    samples: Sequence[Sample],
    ranks: Ranks,
) -> str:
    digest = hashlib.sha256(json.dumps([metadata, entries, ranks.rank, ranks.size], sort_keys=True).encode())
    for sample in samples:
        digest.update(sample.tokens.tobytes())
    return digest.hexdigest()


class _Work:
    """The unfinished profile `.NAME.partial`, its journal and the hidden states to go on from.

    Only rank 0 keeps statistics; each rank keeps its own states.
    """

    def __init__(
        self,
        path: Path,
        entries: list[tuple[str, str, tuple[int, ...]]],
        metadata: dict[str, str],
        identity: str,
        rank: int,
    ) -> None:
        header, starts = encode_header(entries, metadata)
        self._path, self._identity, self._writes = path, identity, rank == 0
        self._header = header
        self._places = {name: start for (name, _, _), start in zip(entries, starts, strict=True)}
        self._sizes = {name: shape[0] for name, _, shape in entries}
        suffix = "" if rank == 0 else f".{rank}"
        self._partial = path.with_name(f".{path.name}.partial")
        self._journal = path.with_name(f".{path.name}.journal{suffix}")
        self._states = path.with_name(f".{path.name}.states{suffix}")
        self._file: BinaryIO | None = None
        self.layers_done = 0

    def __enter__(self) -> _Work:
        if not self._path.parent.is_dir():
            raise SurgeryError("profile", f"need a folder `{self._path.parent}` for the profile, got none")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Write one statistic to its place."""
        if not self._writes:
            return
        assert values.shape == (self._sizes[name],), name

        def write() -> None:
            if self._file is None:
                self._file = self._partial.open("wb")
                self._file.write(self._header)
            self._file.seek(self._places[name])
            self._file.write(np.ascontiguousarray(values).tobytes())

        self._try(write)

    def save(self, layers_done: int, states: Activations) -> None:
        """Make `layers_done` the place to go on from."""

        def write() -> None:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
            temporary = self._states.with_name(self._states.name + ".tmp")
            with temporary.open("wb") as file:
                states.all.tofile(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._states)
            line = json.dumps({"identity": self._identity, "layers_done": layers_done})
            written = self._journal.with_name(self._journal.name + ".tmp")
            written.write_text(line + "\n", "utf-8")
            written.replace(self._journal)

        self._try(write)

    def resumed(self, samples: Sequence[Sample], stream: LayerStream, request: Request) -> Activations | None:
        """The states behind the last saved layer, or None when there is nothing to resume."""
        try:
            document = json.loads(self._journal.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or document.get("identity") != self._identity:
            raise SurgeryError(
                "profile",
                f"need the run that was interrupted, got another checkpoint, data or options than in "
                f"`{self._journal.name}`",
                "repeat the interrupted command with `--resume`, or leave `--resume` out to start anew",
            )
        lengths = [len(sample.tokens) for sample in samples]
        states = Activations(lengths, stream.config.text.hidden_size, request.spill_bytes)
        try:
            saved = np.fromfile(self._states, np.float32)
            if self._writes:
                self._file = self._partial.open("r+b")
        except OSError as error:
            raise SurgeryError("profile", f"cannot resume: {error.filename}: {os_reason(error)}") from None
        if saved.size != states.all.size:
            raise SurgeryError(
                "profile",
                f"need {states.all.size} saved values to resume, got {saved.size} in `{self._states.name}`",
            )
        states.all[:] = saved.reshape(states.all.shape)
        self.layers_done = int(document["layers_done"])
        return states

    def commit(self) -> None:
        """Let the finished file appear and remove everything else."""

        def write() -> None:
            if self._writes:
                assert self._file is not None
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
                self._partial.replace(self._path)
            for left in (self._journal, self._states):
                left.unlink(missing_ok=True)

        self._try(write)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise SurgeryError("profile", f"cannot write `{self._path}`: {os_reason(error)}") from None
