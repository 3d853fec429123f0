"""Making a profile: layer after layer, each one's statistics on disk before the next is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from gemma_surgery.calibration import profile
from gemma_surgery.calibration.activations import Activations
from gemma_surgery.calibration.ranks import Ranks
from gemma_surgery.calibration.samples import Sample
from gemma_surgery.calibration.statistics import LayerStatistics, Places
from gemma_surgery.calibration.stream import SPILL_BYTES, LayerStream
from gemma_surgery.calibration.unfinished import Entry, UnfinishedProfile
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.models.gemma3.config import ModelConfig
from gemma_surgery.surgery.pool import Progress, Silent

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

    The file appears when everything is in it. Until then it is a hidden neighbour, beside the hidden states
    that `resume` continues from.

    Args:
        checkpoint: opened whole if samples show images.
        samples: of all ranks, the same on each; this one takes its share.
        path: the profile; written by rank 0.
        request: see there.
        ranks: the machines that share the work.
        progress: told of this rank's tokens times layers.

    Raises:
        SurgeryError: no sample for a rank, ranks that differ, a pattern without a layer, a file that cannot
            be written, or another run to resume.
    """
    ranks = ranks or Ranks()
    if len(samples) < ranks.size:
        # All ranks notice, and none is to be missed by the others.
        ranks.finish()
        raise SurgeryError(
            "profile", f"need at least one sample per rank, got {len(samples)} for {ranks.size} ranks"
        )
    own = list(samples[ranks.rank :: ranks.size])
    progress = progress or Silent()
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
    identity = _identity(metadata, entries, samples)
    if not ranks.agree(int(identity[:12], 16)):
        ranks.finish()
        raise SurgeryError(
            "profile", "need the same checkpoint, data and options on every rank, got different ones"
        )
    times = Times()
    run = f"{identity} rank {ranks.rank} of {ranks.size}"
    try:
        with UnfinishedProfile(path, entries, metadata, run, ranks.rank) as work:
            wants_hessian = partial(_matches, patterns=request.hessians)
            observer = LayerStatistics(ranks, wants_hessian, work.put, _places(own, ranks, stream.config))
            begin = perf_counter()
            states, start = _resumed(work, own, stream, request) if request.resume else (None, 0)
            # Where one of them died while they were saving, together they can only begin again.
            if not ranks.agree(start) or states is None:
                start = 0
                work.begin()
                states = stream.embed(own, observer, has_images)
                times.seconds["embeddings and vision"] = perf_counter() - begin
            else:
                progress.begin(sum(len(sample.tokens) for sample in own) * (family.num_layers - start))
            times.resumed_layers = start
            begin = saved = perf_counter()
            for index in range(start, family.num_layers):
                stream.layer(index, own, states, observer)
                if ranks.any(perf_counter() - saved > SAVE_SECONDS):
                    work.save(index + 1, states)
                    saved = perf_counter()
            times.seconds["decoder layers"] = perf_counter() - begin
            states.close()
            work.commit()
    finally:
        progress.finish()
    # Whoever started the ranks may look for the file when the first of them ends.
    ranks.finish()
    return times


def _resumed(
    work: UnfinishedProfile, samples: Sequence[Sample], stream: LayerStream, request: Request
) -> tuple[Activations | None, int]:
    """The states behind the last saved layer and how many layers are done; None and 0 where nothing is."""
    lengths = [len(sample.tokens) for sample in samples]
    states = Activations(lengths, stream.config.text.hidden_size, request.spill_bytes)
    start = work.resume(states)
    if start == 0:
        states.close()
        return None, 0
    return states, start


def _places(own: Sequence[Sample], ranks: Ranks, config: ModelConfig) -> Places:
    """Where this rank's samples, and the images that they show, stand among those of all ranks."""
    text = [float(ranks.rank + ranks.size * index) for index in range(len(own))]
    images: list[float] = []
    for place, sample in zip(text, own, strict=True):
        if sample.pixels is not None and config.vision is not None:
            tokens = np.count_nonzero(sample.tokens == config.image_token_id)
            # Images of one sample are on one rank and stay in order there.
            images += [place] * (int(tokens) // config.vision.tokens_per_image)
    return {"text": text, "vision": images}


def _matches(linear: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(linear, pattern) for pattern in patterns)


def _entries(family: Gemma3, has_images: bool, hessians: Sequence[str]) -> list[Entry]:
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
    entries: list[Entry] = []
    listened: list[str] = []
    for prefix, width, heads, linears in layers:
        entries += [
            (f"{prefix}{profile.INFLUENCE}", "F32", (1,)),
            (f"{prefix}mlp.{profile.ACTIVATION}", "F32", (width,)),
            (f"{prefix}self_attn.{profile.HEADS}", "F32", (heads,)),
        ]
        for name, columns in linears.items():
            linear = prefix + name
            listened.append(linear)
            entries += [
                (f"{linear}.{profile.INPUT_MEAN}", "F32", (columns,)),
                (f"{linear}.{profile.FLUCTUATION}", "F32", (columns,)),
            ]
            if name == "mlp.down_proj":
                entries.append((f"{linear}.{profile.OUTPUT_SHARE}", "F32", (columns,)))
            if _matches(linear, hessians):
                entries += [
                    (f"{linear}.{profile.COUNT}", "F32", (1,)),
                    (f"{linear}.{profile.DIAGONAL}", "F32", (columns,)),
                    (f"{linear}.{profile.CORRELATION}", "I16", (columns * (columns - 1) // 2,)),
                ]
    for pattern in hessians:
        if not any(_matches(linear, [pattern]) for linear in listened):
            kinds = ", ".join(sorted({f"`*.{'.'.join(linear.split('.')[-2:])}`" for linear in listened}))
            raise SurgeryError(
                "profile", f"need a layer whose inputs are looked at ({kinds}), got none by `{pattern}`"
            )
    return entries


def _identity(
    metadata: dict[str, str],
    entries: list[Entry],
    samples: Sequence[Sample],
) -> str:
    digest = hashlib.sha256(json.dumps([metadata, entries], sort_keys=True).encode())
    for sample in samples:
        digest.update(sample.tokens.tobytes())
    return digest.hexdigest()
