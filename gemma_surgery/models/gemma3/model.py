"""A Gemma 3 checkpoint ready to run: every layout that the reader knows, vision loaded when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3, is_vision_tensor
from gemma_surgery.models.gemma3.config import ModelConfig, VisionConfig, read_model_config
from gemma_surgery.models.gemma3.text import TextDecoder
from gemma_surgery.models.gemma3.vision import VisionEncoder
from gemma_surgery.models.gemma3.vocabulary import TokenRows, Vocabulary, stored_dtype
from gemma_surgery.models.kv_cache import DENSE, CacheOptions, KVCache
from gemma_surgery.models.weights import MLX_DTYPES, Weights
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import Quantized

# Problems that one message lists before it only counts them.
LISTED_PROBLEMS = 3


class Gemma3Model(Module):
    """Runs a Gemma 3 checkpoint.

    Vision weights are opened and read by the first `embed_images`, not before.

    Args:
        checkpoint: an opened checkpoint whose config and tensors agree.
        dtype: of activations.
        activations: how many bits of them enter products, see `load_model`.

    Attributes:
        config: what config.json says; without vision when the folder has no vision weights.
        vocabulary: embedding and output head.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype, activations: str = "full") -> None:
        super().__init__()
        self.checkpoint, self.dtype = checkpoint, dtype
        self._family = Gemma3(checkpoint.config)
        self._weights = weights = Weights(checkpoint, dtype, activations)
        check_anatomy(checkpoint, self._family, weights)
        self.config: ModelConfig = read_model_config(checkpoint)
        family, text = self._family, self.config.text
        self.vocabulary = Vocabulary(weights, family, text, dtype)
        self.decoder = TextDecoder(weights, family, text)
        self._vision: VisionEncoder | None = None
        self._sources = [weights]

    @property
    def has_vision(self) -> bool:
        """Whether images can be shown to it."""
        return self.config.vision is not None

    @property
    def vision_loaded(self) -> bool:
        """Whether an image has made the vision weights be read."""
        return self._vision is not None

    @property
    def opened_files(self) -> list[str]:
        """Weight files opened so far, in order."""
        return [file for source in self._sources for file in source.opened]

    @property
    def text_bytes(self) -> int:
        """Bytes of the weights that text needs, in memory."""
        return _size_bytes(self.vocabulary) + _size_bytes(self.decoder)

    def make_cache(self, options: CacheOptions = DENSE) -> list[KVCache]:
        """An empty cache, one entry per layer.

        Raises:
            SurgeryError: `options` do not fit the head dimension.
        """
        text = self.config.text
        options.check(text.head_dim)
        return [KVCache(None if is_global else text.window, options) for is_global in text.is_global]

    def embed(self, tokens: mx.array) -> mx.array:
        """Scaled embeddings of token ids.

        Args:
            tokens: int32 `[B, T]` original ids; image tokens get a vector that is to be overwritten.

        Returns:
            `[B, T, E]`; zero for an id that was pruned.
        """
        return self.vocabulary.embed(tokens)

    def embed_images(self, pixels: mx.array) -> mx.array:
        """Image tokens of normalised images.

        Args:
            pixels: float32 `[N, S, S, 3]`, RGB in [-1, 1].

        Returns:
            `[N, P, E]`, not to be scaled.

        Raises:
            SurgeryError: the checkpoint has no vision weights, or S is another size.
        """
        config = self.config.vision
        if config is None:
            raise SurgeryError(
                "model",
                f"need a vision tower for an image, got the text-only checkpoint `{self.checkpoint.path}`",
                "leave the image out, or add the vision weights to the folder",
            )
        expected = (config.image_size, config.image_size, config.num_channels)
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise SurgeryError(
                "model", f"need pixels [N, {', '.join(map(str, expected))}], got {list(pixels.shape)}"
            )
        if self._vision is None:
            self._vision = self._load_vision(config)
        return self._vision(pixels)

    def _load_vision(self, config: VisionConfig) -> VisionEncoder:
        weights = self._weights
        if self.checkpoint.closed_files:
            whole = open_checkpoint(self.checkpoint.path)
            weights = Weights(whole, self.dtype, weights.activations)
            check_anatomy(whole, self._family, weights)
            self._sources.append(weights)
        vision = VisionEncoder(weights, self._family, config)
        _read(vision, weights)
        return vision

    def forward(
        self, inputs: mx.array, cache: Sequence[KVCache], image_blocks: mx.array | None = None
    ) -> mx.array:
        """Hidden states of the next tokens.

        Args:
            inputs: `[B, T, E]` from `embed`, image tokens overwritten.
            cache: from `make_cache`; grows by T tokens.
            image_blocks: int32 `[T]`: 0 for text, else the number of the image, which must lie whole in
                one call.

        Returns:
            `[B, T, E]`, after the final norm.
        """
        return self.decoder(inputs, cache, image_blocks)

    @property
    def rows(self) -> TokenRows:
        """The vocabulary of the logits."""
        return self.vocabulary.rows

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits over the head's rows, `[..., E]` -> `[..., R]`; minus infinity for rows of no token."""
        return self.vocabulary.logits(hidden)

    def choice(self, hidden: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """The most likely token; see `Vocabulary.choice`."""
        return self.vocabulary.choice(hidden, ids)

    def full_logits(self, logits: mx.array) -> mx.array:
        """Logits over original ids, `[..., R]` -> `[..., V]`: minus infinity for pruned ids."""
        return self.vocabulary.full_logits(logits)

    def __call__(
        self,
        tokens: mx.array,
        pixels: mx.array | None = None,
        cache: Sequence[KVCache] | None = None,
    ) -> mx.array:
        """Logits of every position in one pass, mostly for tests and measurements.

        Args:
            tokens: int32 `[B, T]`; with pixels, B is 1 and P image tokens stand for each image.
            pixels: float32 `[N, S, S, 3]`.
            cache: continue after what it holds.

        Returns:
            `[B, T, R]`.
        """
        inputs = self.embed(tokens)
        blocks = None
        if pixels is not None:
            ids = np.asarray(tokens[0])
            images = self.embed_images(pixels)
            inputs, blocks = insert_images(inputs, images, ids == self.config.image_token_id)
        return self.logits(self.forward(inputs, self.make_cache() if cache is None else cache, blocks))


def insert_images(inputs: mx.array, images: mx.array, is_image: np.ndarray) -> tuple[mx.array, mx.array]:
    """Put image tokens where they belong.

    Args:
        inputs: embeddings `[1, T, E]`.
        images: `[N, P, E]`.
        is_image: booleans `[T]`: the positions of image tokens, N * P of them in runs of P.

    Returns:
        The embeddings `[1, T, E]`, and int32 `[T]`: 0 for text, 1.. for the images in turn.

    Raises:
        SurgeryError: another number of positions, or runs of another length.
    """
    places = np.flatnonzero(is_image)
    count, per_image = images.shape[0], images.shape[1]
    runs = places.reshape(-1, per_image) if places.size % per_image == 0 else places[:0].reshape(0, per_image)
    if runs.shape[0] != count or (runs[:, -1] - runs[:, 0] != per_image - 1).any():
        raise SurgeryError(
            "model",
            f"need {count} runs of {per_image} image tokens for {count} images, got {places.size} tokens",
        )
    blocks = np.zeros(is_image.shape[0], np.int32)
    blocks[runs.ravel()] = np.repeat(np.arange(1, count + 1), per_image)
    inputs[:, mx.array(places)] = images.reshape(1, -1, images.shape[-1]).astype(inputs.dtype)
    return inputs, mx.array(blocks)


def load_model(
    model: str | Path | Checkpoint,
    *,
    dtype: mx.Dtype | None = None,
    activations: str = "full",
    revision: str | None = None,
) -> Gemma3Model:
    """Open a checkpoint and load what text needs.

    Args:
        model: a folder, a Hugging Face repository id, or an opened checkpoint.
        dtype: of activations. Default: what the checkpoint was stored in; float32 where that is float16,
            which Gemma 3 overflows, and for quantized checkpoints on a CPU, where it costs little.
        activations: how many bits of them enter products with quantized weights on a CPU: ``full`` (24 for
            float32), ``int16`` or ``int8``, which is fast and rounds to about one percent.
        revision: branch, tag or commit of a repository id.

    Raises:
        SurgeryError: no such checkpoint, another family, or config and tensors disagree.
    """
    checkpoint = (
        model
        if isinstance(model, Checkpoint)
        else open_checkpoint(model, revision, leave_out=is_vision_tensor)
    )
    loaded = Gemma3Model(checkpoint, dtype or _default_dtype(checkpoint), activations)
    _read(loaded, loaded._weights)
    return loaded


def _default_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    encoding = logical_matrices(checkpoint)[Gemma3(checkpoint.config).embedding].encoding
    stored = stored_dtype(encoding)
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if stored == "F16" or (on_cpu and isinstance(encoding, Quantized)):
        return mx.float32
    return MLX_DTYPES[stored]


def _read(module: Module, weights: Weights) -> None:
    """Read what the module holds, and let go of the rest of the opened files."""
    try:
        mx.eval(module.parameters())
    except RuntimeError as error:
        raise SurgeryError("model", f"cannot read weights of `{weights.checkpoint.path}`: {error}") from None
    weights.release()


def _size_bytes(module: Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))  # type: ignore[union-attr,str-unpack]


def check_anatomy(checkpoint: Checkpoint, family: Gemma3, weights: Weights) -> None:
    """Raise unless the tensors are those that config.json describes."""
    problems = family.problems(weights.matrices)
    if problems:
        listed = "; ".join(problems[:LISTED_PROBLEMS])
        more = len(problems) - LISTED_PROBLEMS
        raise SurgeryError(
            "model",
            f"need tensors as `config.json` describes them, got in `{checkpoint.path}`: {listed}"
            + (f"; and {more} more" if more > 0 else ""),
        )
