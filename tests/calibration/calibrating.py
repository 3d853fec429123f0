"""Samples for a checkpoint, and what a whole model that reads them is seen to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from gemma_surgery.calibration.measure import Request, make_profile
from gemma_surgery.calibration.passages import built_in_passages, read_passages
from gemma_surgery.calibration.samples import Sample, make_samples
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import Gemma3Model, load_model
from gemma_surgery.models.gemma3.config import read_model_config
from gemma_surgery.models.gemma3.model import insert_images

# Longer than the demo model's window of 64.
MAX_TOKENS = 96
# Names the data; nothing is derived from it.
DATA_SHA256 = "0" * 64


def passages(count: int, pictures: Path | None = None) -> list:
    return [*built_in_passages()[:count], *(read_passages(pictures) if pictures else [])]


def samples_of(folder: Path, count: int, pictures: Path | None = None) -> list[Sample]:
    """Samples of different lengths; those that show pictures come last."""
    checkpoint = open_checkpoint(folder)
    tokenizer, config = Tokenizer.load(checkpoint), read_model_config(checkpoint)
    made = []
    for index, passage in enumerate(passages(count, pictures)):
        made += make_samples([passage], tokenizer, config, chat=True, max_tokens=MAX_TOKENS - 7 * index)
    return made


def profiled(folder: Path, samples: Sequence[Sample], path: Path, **options: object) -> Checkpoint:
    """Write a profile; `options` are those of `Request`."""
    checkpoint = open_checkpoint(folder)
    make_profile(checkpoint, samples, path, Request(DATA_SHA256, **options))
    return checkpoint


def whole_model(folder: Path, dtype: mx.Dtype) -> Gemma3Model:
    return load_model(open_checkpoint(folder), dtype=dtype)


def run_whole(model: Gemma3Model, sample: Sample) -> mx.array:
    """Hidden states `[T, E]` after the final norm, all layers in memory."""
    inputs, blocks = model.embed(mx.array(sample.tokens)[None]), None
    if sample.pixels is not None:
        images = model.embed_images(mx.array(sample.pixels()))
        inputs, blocks = insert_images(inputs, images, sample.tokens == model.config.image_token_id)
    return model.forward(inputs, model.make_cache(), blocks)[0]


class Recorder(Module):
    """A module whose first argument and result are kept as float64, one pair per call."""

    def __init__(self, inner: Callable[..., mx.array]) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, x: mx.array, *others: object) -> mx.array:
        y = self.inner(x, *others)
        self.calls.append(tuple(np.asarray(each[0].astype(mx.float32)).astype(np.float64) for each in (x, y)))
        return y

    @property
    def inputs(self) -> list[np.ndarray]:
        """`[T, ...]` per call."""
        return [x for x, _ in self.calls]

    @property
    def outputs(self) -> list[np.ndarray]:
        return [y for _, y in self.calls]
