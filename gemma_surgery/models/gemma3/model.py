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
from gemma_surgery.models.gemma3.config import ModelConfig, TextConfig, VisionConfig, read_model_config
from gemma_surgery.models.gemma3.text import TextDecoder
from gemma_surgery.models.gemma3.vision import VisionEncoder
from gemma_surgery.models.kv_cache import DENSE, CacheOptions, KVCache
from gemma_surgery.models.layers import Matrix, capped
from gemma_surgery.models.weights import MLX_DTYPES, Weights
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import Dense, Encoding, Quantized

# Problems that one message lists before it only counts them.
LISTED_PROBLEMS = 3


class TokenRows:
    """Which row of the logits stands for which token id.

    Args:
        size: rows R of the output head.
        token_map: int32 `[V]` of a pruned vocabulary, 0 for pruned ids; None when the rows are the ids.
        compact: whether the head has only the kept rows; else it has a row for every id.
    """

    def __init__(self, size: int, token_map: np.ndarray | None = None, compact: bool = False) -> None:
        self.size = size
        self.is_pruned = token_map is not None
        self._row_of: mx.array | None = None
        self._id_of: mx.array | None = None
        self.kept: mx.array | None = None
        if token_map is None:
            return
        if not compact:
            self.kept = mx.array(token_map[:size] > 0)
            return
        id_of = np.full(size, -1, np.int32)
        # Backwards, so that of two ids on one row the smaller one stays.
        ids = np.flatnonzero(token_map)[::-1]
        id_of[token_map[ids]] = ids
        self.kept = mx.array(id_of >= 0)
        self._row_of, self._id_of = mx.array(token_map), mx.array(np.maximum(id_of, 0))

    def to_rows(self, ids: mx.array) -> mx.array:
        """Rows of token ids, int32 of the same shape; 0 for a pruned id of a compact head."""
        return ids if self._row_of is None else self._row_of[ids]

    def to_ids(self, rows: mx.array) -> mx.array:
        """Token ids of rows, int32 of the same shape."""
        return rows if self._id_of is None else self._id_of[rows]


class Gemma3Model(Module):
    """Runs a Gemma 3 checkpoint.

    Vision weights are opened and read by the first `embed_images`, not before.

    Args:
        checkpoint: an opened checkpoint whose config and tensors agree.
        dtype: of activations.
        activations: how many bits of them enter products, see `load_model`.

    Attributes:
        config: what config.json says; without vision when the folder has no vision weights.
        rows: the vocabulary of the logits.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype, activations: str = "full") -> None:
        super().__init__()
        self.checkpoint, self.dtype = checkpoint, dtype
        self._family = Gemma3(checkpoint.config)
        self._weights = weights = Weights(checkpoint, dtype, activations)
        _check_anatomy(checkpoint, self._family, weights)
        self.config: ModelConfig = read_model_config(checkpoint)
        family, text = self._family, self.config.text
        self.embed_tokens = Matrix(weights, family.embedding)
        self.lm_head = Matrix(weights, family.head) if family.head in weights else None
        self.decoder = TextDecoder(weights, family, text)
        self._token_map: mx.array | None = None
        token_map = None
        if family.token_map in weights:
            token_map = _checked_token_map(weights.stored(family.token_map), weights, family)
            self._token_map = mx.array(token_map)
        self._embed_scale = _embed_scale(text, weights, family)
        head = family.head if self.lm_head is not None else family.embedding
        rows = weights.matrices[head].shape[0]
        self.rows = TokenRows(rows, token_map, compact=rows != text.vocab_size)
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
        modules = (self.embed_tokens, self.lm_head, self.decoder)
        return sum(_size_bytes(module) for module in modules if module is not None)

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
        return self.embed_tokens.take(tokens, self.dtype, self._embed_scale, self._token_map)

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
            _check_anatomy(whole, self._family, weights)
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

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits over the head's rows, `[..., E]` -> `[..., R]`; minus infinity for rows of no token."""
        logits = capped(self._head.product(hidden), self.config.text.final_softcap)
        return logits if self.rows.kept is None else mx.where(self.rows.kept, logits, -mx.inf)

    def choice(self, hidden: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """The most likely token, without the logits where the head is quantized.

        Args:
            hidden: `[..., E]` from `forward`.
            ids: int32 `[R]`, the id of each row of the head; -1 for one that is not to be chosen.

        Returns:
            ids int32 and log-probabilities among the rows that may be chosen, float32, both `[...]`.
        """
        return self._head.choice(hidden, ids, self.config.text.final_softcap)

    @property
    def _head(self) -> Matrix:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def full_logits(self, logits: mx.array) -> mx.array:
        """Logits over original ids, `[..., R]` -> `[..., V]`: minus infinity for pruned ids."""
        if self._token_map is None or self.rows.size == self.config.text.vocab_size:
            return logits
        spread = mx.take(logits, self._token_map, axis=-1)
        return mx.where(self._token_map > 0, spread, -mx.inf)

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
    stored = _stored_dtype(encoding)
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if stored == "F16" or (on_cpu and isinstance(encoding, Quantized)):
        return mx.float32
    return MLX_DTYPES[stored]


def _stored_dtype(encoding: Encoding) -> str:
    """What values are decoded to: the dtype of a dense matrix, or of the scales of a quantized one."""
    return encoding.dtype if isinstance(encoding, Dense) else encoding.scale_dtype


def _read(module: Module, weights: Weights) -> None:
    """Read what the module holds, and let go of the rest of the opened files."""
    try:
        mx.eval(module.parameters())
    except RuntimeError as error:
        raise SurgeryError("model", f"cannot read weights of `{weights.checkpoint.path}`: {error}") from None
    weights.release()


def _size_bytes(module: Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))  # type: ignore[union-attr,str-unpack]


def _embed_scale(text: TextConfig, weights: Weights, family: Gemma3) -> float:
    """The square root of E in the checkpoint's own precision: 50.5 for 2560 in bfloat16."""
    encoding = weights.encoding(family.embedding)
    stored = _stored_dtype(encoding)
    return float(np.asarray(mx.array(text.hidden_size**0.5).astype(MLX_DTYPES[stored]).astype(mx.float32)))


def _check_anatomy(checkpoint: Checkpoint, family: Gemma3, weights: Weights) -> None:
    problems = family.problems(weights.matrices)
    if problems:
        listed = "; ".join(problems[:LISTED_PROBLEMS])
        more = len(problems) - LISTED_PROBLEMS
        raise SurgeryError(
            "model",
            f"need tensors as `config.json` describes them, got in `{checkpoint.path}`: {listed}"
            + (f"; and {more} more" if more > 0 else ""),
        )


def _checked_token_map(stored: mx.array, weights: Weights, family: Gemma3) -> np.ndarray:
    token_map = np.asarray(stored.astype(mx.int32))
    rows = weights.matrices[family.embedding].shape[0]
    if token_map.min() < 0 or token_map.max() >= rows:
        raise SurgeryError(
            "model",
            f"need rows 0 to {rows - 1}, got {token_map.min()} to {token_map.max()} in `{family.token_map}`",
        )
    return token_map
