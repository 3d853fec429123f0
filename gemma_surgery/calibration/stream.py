"""A forward pass with one layer in memory at a time: all samples through it, then the next.

Weights are read once, however many samples there are, and a model of any size needs the memory of its
largest layer and of the hidden states (`Activations`), which may be in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from gemma_surgery.calibration.activations import Activations
from gemma_surgery.calibration.samples import Sample
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import VISION, Gemma3
from gemma_surgery.generation.prompt import image_spans
from gemma_surgery.models.gemma3.config import read_model_config
from gemma_surgery.models.gemma3.model import check_anatomy, insert_images
from gemma_surgery.models.gemma3.text import DecoderLayer
from gemma_surgery.models.gemma3.vision import PatchEmbedding, Projector, VisionLayer
from gemma_surgery.models.gemma3.vocabulary import Vocabulary, embed_scale, read_token_map
from gemma_surgery.models.kv_cache import KVCache
from gemma_surgery.models.layers import LayerNorm, Matrix, RMSNorm
from gemma_surgery.models.weights import Weights
from gemma_surgery.surgery.pool import Progress, Silent

# Hidden states beyond this go to a file: 26,000 tokens of a 4B model.
SPILL_BYTES = 256 << 20

Run = Callable[[mx.array, int], mx.array]


@dataclass(frozen=True)
class Site:
    """A layer: of the text decoder or of the vision tower, by its index and what its names start with."""

    part: Literal["text", "vision"]
    index: int
    prefix: str


class Observer(Protocol):
    """Looks at layers while samples pass through them."""

    def begin(self, site: Site, layer: Module) -> None:
        """`layer` is about to run; parts of it may be wrapped."""
        ...

    def sample(self, before: mx.array, after: mx.array) -> None:
        """One sample (or image) has passed: hidden states `[1, T, E]`, evaluated."""
        ...

    def end(self) -> None:
        """All samples have passed the layer."""
        ...


class LayerStream:
    """Runs a checkpoint layer by layer.

    Args:
        checkpoint: opened whole, vision included if samples show images.
        dtype: of the computation.
        spill_bytes: hidden states beyond this size are kept in a temporary file.
        progress: told of tokens times layers.

    Attributes:
        config: what config.json says.

    Raises:
        SurgeryError: another family, or config and tensors disagree.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: mx.Dtype = mx.float32,
        spill_bytes: int = SPILL_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self._family = Gemma3(checkpoint.config)
        self._weights = Weights(checkpoint, dtype)
        check_anatomy(checkpoint, self._family, self._weights)
        self.checkpoint, self.config = checkpoint, read_model_config(checkpoint)
        self._dtype, self._spill_bytes = dtype, spill_bytes
        self._progress = progress or Silent()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Embedding and head, read when first asked for."""
        vocabulary = Vocabulary(self._weights, self._family, self.config.text, self._dtype)
        _read(vocabulary, self.checkpoint)
        self._weights.release()
        return vocabulary

    def final_states(self, samples: Sequence[Sample], observer: Observer | None = None) -> Activations:
        """Hidden states of every token after the final norm, float32 `[T, E]` per sample.

        Raises:
            SurgeryError: images and image tokens do not match, or the checkpoint has no vision weights.
        """
        states = self.embed(samples, observer)
        for index in range(self.config.text.num_layers):
            self.layer(index, samples, states, observer)
        self.normalize(states)
        return states

    def embed(
        self, samples: Sequence[Sample], observer: Observer | None = None, has_images: bool = False
    ) -> Activations:
        """What enters the first layer: scaled embeddings and image tokens, the tower run for the latter.

        Args:
            samples: at least one.
            observer: of the tower's layers.
            has_images: the observer sees these layers even if no sample here shows an image.
        """
        shown = [index for index, sample in enumerate(samples) if sample.pixels is not None]
        lengths = [len(sample.tokens) for sample in samples]
        self._progress.begin(sum(lengths) * self.config.text.num_layers)
        images: list[mx.array] = []
        if shown or has_images:
            images = self._images([samples[index] for index in shown], observer)
        states = Activations(lengths, self.config.text.hidden_size, self._spill_bytes)
        distinct = np.unique(np.concatenate([sample.tokens for sample in samples]))
        token_map = read_token_map(self._weights, self._family)
        rows = distinct if token_map is None else token_map[distinct]
        table = Matrix(self._weights, self._family.embedding, rows)
        scale = embed_scale(self.config.text, self._weights, self._family)
        for index, sample in enumerate(samples):
            ids = mx.array(np.searchsorted(distinct, sample.tokens).astype(np.int32))[None]
            inputs = table.take(ids, self._dtype, scale)
            if index in shown:
                is_image = sample.tokens == self.config.image_token_id
                inputs, _ = insert_images(inputs, images[shown.index(index)], is_image)
            states[index] = _as_numpy(inputs[0])
        return states

    def layer(
        self, index: int, samples: Sequence[Sample], states: Activations, observer: Observer | None = None
    ) -> None:
        """Take all samples through decoder layer `index`, in place."""
        text = self.config.text
        is_global = text.is_global[index]
        site = Site("text", index, self._family.layer_prefix(index))
        layer = DecoderLayer(self._weights, site.prefix, text, is_global)

        def run(x: mx.array, sample: int) -> mx.array:
            cache = KVCache(None if is_global else text.window)
            return layer(x, cache, cache.sight(x.shape[1], self._blocks(samples[sample])))

        self._pass(site, layer, run, states, observer)

    def normalize(self, states: Activations) -> None:
        """Apply the final norm, in place."""
        norm = RMSNorm(self._weights, f"{self._family.text_prefix}norm.weight", self.config.text.norm_eps)
        for index in range(len(states)):
            states[index] = _as_numpy(norm(mx.array(states[index]).astype(self._dtype)))
        self._progress.finish()

    def _blocks(self, sample: Sample) -> mx.array | None:
        if sample.pixels is None or self.config.image_token_id is None or self.config.vision is None:
            return None
        blocks = np.zeros(len(sample.tokens), np.int32)
        per_image = self.config.vision.tokens_per_image
        number = 0
        for start, end in image_spans(sample.tokens.tolist(), self.config.image_token_id):
            for first in range(start, end, per_image):
                number += 1
                blocks[first : first + per_image] = number
        return mx.array(blocks)

    def _images(self, samples: Sequence[Sample], observer: Observer | None) -> list[mx.array]:
        """Image tokens `[N, P, E]` of each sample."""
        config = self.config.vision
        if config is None:
            raise SurgeryError(
                "calibration",
                f"need a vision tower for images, got the text-only checkpoint `{self.checkpoint.path}`",
                "leave the images out",
            )
        embedding = PatchEmbedding(self._weights, self._family, config)
        counts: list[int] = []
        embedded: list[np.ndarray] = []
        for sample in samples:
            assert sample.pixels is not None
            pixels = sample.pixels()
            counts.append(len(pixels))
            embedded += [_as_numpy(embedding(mx.array(image[None]))[0]) for image in pixels]
        states = Activations([config.grid**2] * len(embedded), config.hidden_size, self._spill_bytes)
        for index, values in enumerate(embedded):
            states[index] = values
        del embedded
        for index in range(config.num_layers):
            site = Site("vision", index, self._family.vision_layer_prefix(index))
            layer = VisionLayer(self._weights, site.prefix, config)
            self._pass(site, layer, partial(_run_alone, layer), states, observer)
        norm = LayerNorm(self._weights, f"{VISION}post_layernorm", config.norm_eps)
        projector = Projector(self._weights, config)
        patches = (mx.array(states[index])[None].astype(self._dtype) for index in range(len(states)))
        tokens = [projector(norm(x))[0] for x in patches]
        mx.eval(tokens)
        states.close()
        ends = np.cumsum(counts)
        return [mx.stack(tokens[end - count : end]) for count, end in zip(counts, ends.tolist(), strict=True)]

    def _pass(
        self, site: Site, layer: Module, run: Run, states: Activations, observer: Observer | None
    ) -> None:
        _read(layer, self.checkpoint)
        if observer is not None:
            observer.begin(site, layer)
        for index in range(len(states)):
            before = mx.array(states[index])[None].astype(self._dtype)
            after = run(before, index)
            mx.eval(after)
            if observer is not None:
                observer.sample(before, after)
            states[index] = _as_numpy(after[0])
            if site.part == "text":
                self._progress.advance(before.shape[1])
        if observer is not None:
            observer.end()
        mx.clear_cache()


def _run_alone(layer: VisionLayer, x: mx.array, _: int) -> mx.array:
    return layer(x)


def _read(module: Module, checkpoint: Checkpoint) -> None:
    try:
        mx.eval(module.parameters())  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise SurgeryError("calibration", f"cannot read weights of `{checkpoint.path}`: {error}") from None


def _as_numpy(x: mx.array) -> np.ndarray:
    return np.asarray(x.astype(mx.float32))
