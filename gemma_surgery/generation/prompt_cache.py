"""Keys and values of a prompt that were computed once: kept from turn to turn, or in a file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import mlx.core as mx
import numpy as np

from gemma_surgery.checkpoint.header import Header, read_header
from gemma_surgery.checkpoint.json_types import Json, JsonProblem, decode_object, os_reason
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import is_vision_tensor
from gemma_surgery.models.kv_cache import CacheOptions, KVCache

if TYPE_CHECKING:
    from gemma_surgery.checkpoint.model_folder import Checkpoint
    from gemma_surgery.models import Gemma3Model

FORMAT = "gemma-surgery-prompt-cache"
VERSION = "1"
TOKENS = "tokens"
# Bytes out of the middle of each tensor that tell two checkpoints of the same shape apart.
SAMPLE_BYTES = 1024


@dataclass
class PromptCache:
    """What a model has seen, layer by layer.

    After each generated token, and when generation has ended, it holds the prompt and every token that was
    given out, the last one included: the next prompt starts right after it.

    Attributes:
        layers: one per decoder layer.
        tokens: original ids of what they hold, image tokens included.
        images: sha256 of the pixels of each image, in order.
    """

    layers: list[KVCache]
    tokens: list[int] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    @staticmethod
    def empty(model: Gemma3Model, options: CacheOptions | None = None) -> PromptCache:
        """A cache that holds nothing yet.

        Raises:
            SurgeryError: `options` do not fit the model.
        """
        return PromptCache(model.make_cache(options or CacheOptions()))

    @property
    def offset(self) -> int:
        """Tokens held, the position of the next one."""
        return self.layers[0].offset

    def can_keep(self, count: int) -> bool:
        """Whether everything after the first `count` tokens can be forgotten without a trace."""
        return all(layer.can_trim(self.offset - count) for layer in self.layers)

    def keep(self, model: Gemma3Model, count: int) -> None:
        """Forget everything after the first `count` tokens, not cutting an image.

        Raises:
            SurgeryError: a local layer no longer holds what it would see then, or the cut is inside an image.
        """
        vision, image_id = model.config.vision, model.config.image_token_id
        kept = self.tokens[:count]
        image_tokens = kept.count(image_id) if image_id is not None else 0
        per_image = vision.tokens_per_image if vision is not None else 1
        if image_tokens % per_image:
            _refuse(f"need a cut between images, got one inside the image at token {count}")
        for layer in self.layers:
            layer.trim(layer.offset - count)
        self.tokens, self.images = kept, self.images[: image_tokens // per_image]

    def check(self, model: Gemma3Model) -> None:
        """Check that the layers are the model's and have seen `tokens`, no more and no less.

        Raises:
            SurgeryError: they have not, e.g. because a pass was interrupted half way.
        """
        self.check_layers(model)
        if self.offset != len(self.tokens):
            _refuse(
                f"need layers that have seen the cache's {len(self.tokens)} tokens, got {self.offset} seen",
                "a pass was interrupted, or the layers were used elsewhere: start with an empty cache",
            )

    def check_layers(self, model: Gemma3Model) -> None:
        """Check that the layers are as many as the model's and have all seen as many tokens.

        Raises:
            SurgeryError: they are not.
        """
        if len(self.layers) != model.config.text.num_layers:
            _refuse(
                f"need a cache of {model.config.text.num_layers} layers, got {len(self.layers)}",
                "use a cache of the same model",
            )
        offsets = sorted({layer.offset for layer in self.layers})
        if len(offsets) > 1:
            _refuse(
                f"need layers that have all seen the same tokens, got {offsets[0]} to {offsets[-1]}",
                "a pass was interrupted: start with an empty cache",
            )


def image_digest(pixels: np.ndarray) -> str:
    """Sha256 of one image's pixels, float32 `[S, S, 3]`."""
    return hashlib.sha256(np.ascontiguousarray(pixels, np.float32).tobytes()).hexdigest()


def save_prompt_cache(path: str | Path, model: Gemma3Model, cache: PromptCache) -> None:
    """Write a cache to a safetensors file, atomically: a reader sees the old file or the whole new one.

    Args:
        path: the file; replaced if it exists.
        model: the model that the cache was filled by.
        cache: holding at least one token.

    Raises:
        SurgeryError: the cache is empty or not consistent, or the file cannot be written.
    """
    cache.check(model)
    if not cache.tokens:
        _refuse("need a cache that holds tokens, got an empty one")
    path = Path(path)
    arrays = {TOKENS: mx.array(cache.tokens, mx.int32)}
    for index, layer in enumerate(cache.layers):
        arrays |= {f"layers.{index}.{name}": array for name, array in layer.state().items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": model_digest(model.checkpoint, with_vision=bool(cache.images)),
        "dtype": str(model.dtype),
        "images": json.dumps(cache.images),
        "layers": json.dumps([layer.meta() for layer in cache.layers]),
    }
    # MLX appends its suffix to any other name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.safetensors")
    try:
        mx.save_safetensors(str(temporary), arrays, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        _refuse(f"cannot write `{path}`: {reason}")
    finally:
        temporary.unlink(missing_ok=True)


def load_prompt_cache(path: str | Path, model: Gemma3Model) -> PromptCache:
    """Read a cache that `save_prompt_cache` wrote for the same checkpoint.

    Raises:
        SurgeryError: no such file, damaged, of another format, or filled by another checkpoint or in another
            dtype.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        _refuse(
            f"need a prompt cache of version {VERSION}, got something else in `{path}`",
            "give a file that was saved as a prompt cache",
        )
    images = _strings(metadata, "images", path)
    if metadata.get("model") != model_digest(model.checkpoint, with_vision=bool(images)):
        _refuse(
            f"need a prompt cache of `{model.checkpoint.path}`, got one of another checkpoint in `{path}`",
            "compute it again with this checkpoint",
        )
    if metadata.get("dtype") != str(model.dtype):
        _refuse(
            f"need a prompt cache computed in `{model.dtype}`, got `{metadata.get('dtype')}` in `{path}`",
            "load the model with the dtype that the cache was computed in",
        )
    arrays = _arrays(path, header)
    tokens = arrays.pop(TOKENS, None)
    layers = _restored_layers(arrays, _objects(metadata, "layers", path))
    if tokens is None or not layers:
        _refuse(f"need `{TOKENS}` and layers in `{path}`, which lacks them")
    cache = PromptCache(layers, np.asarray(tokens).ravel().tolist(), images)
    cache.check(model)
    text = model.config.text
    for index, (layer, expected) in enumerate(zip(layers, model.make_cache(layers[0].options), strict=True)):
        shapes = {array.shape[:2] for array in layer.state().values()}
        if layer.window != expected.window or shapes != {(1, text.num_kv_heads)}:
            _refuse(
                f"need layer {index} with window {expected.window} and {text.num_kv_heads} kv heads,"
                f" got window {layer.window} and arrays {sorted(shapes)} in `{path}`"
            )
    return cache


def model_digest(checkpoint: Checkpoint, with_vision: bool) -> str:
    """Sha256 over the fingerprint and a sample of every tensor that keys and values depend on.

    Args:
        checkpoint: an opened checkpoint.
        with_vision: whether the vision tower counts; without it no vision file has to be there.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    tensors = [
        tensor
        for name, tensor in sorted(checkpoint.tensors.items())
        if with_vision or not is_vision_tensor(name)
    ]
    buffer = bytearray(SAMPLE_BYTES)
    files = {tensor.file: checkpoint.files[tensor.file] for tensor in tensors}
    with SourceFiles(replace(checkpoint, files=files)) as source:
        for tensor in tensors:
            size = min(SAMPLE_BYTES, tensor.size_bytes)
            middle = tensor.start + (tensor.size_bytes - size) // 2
            source.read_into(tensor.file, middle, memoryview(buffer)[:size])
            digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\n".encode())
            digest.update(buffer[:size])
    return digest.hexdigest()


def _arrays(path: Path, header: Header) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path), format="safetensors")
        # Read now: the file may be replaced while the cache is in use.
        mx.eval(arrays)
    except (OSError, RuntimeError) as error:
        _refuse(f"cannot read `{path}`: {error}")
    if not isinstance(arrays, dict) or arrays.keys() != header.tensors.keys():
        _refuse(f"need `{path}` unchanged while it is read, got other tensors than its header names")
    return arrays


def _restored_layers(arrays: dict[str, mx.array], metas: list[dict[str, str]]) -> list[KVCache]:
    states: list[dict[str, mx.array]] = [{} for _ in metas]
    for name, array in arrays.items():
        layer, _, key = name.removeprefix("layers.").partition(".")
        if not layer.isdecimal() or int(layer) >= len(metas) or array.ndim != 4:
            _refuse(f"need 4-d arrays of {len(metas)} layers, got `{name}` of shape {list(array.shape)}")
        states[int(layer)][key] = array
    return [KVCache.restored(state, meta) for state, meta in zip(states, metas, strict=True)]


def _listed(metadata: dict[str, str], key: str, path: Path) -> list[Json]:
    try:
        values = decode_object(f'{{"values": {metadata.get(key, "")}}}'.encode())["values"]
    except JsonProblem as problem:
        _refuse(f"`{key}` of `{path}` {problem}")
    if not isinstance(values, list):
        _refuse(f"need a list under `{key}` in `{path}`")
    return values


def _strings(metadata: dict[str, str], key: str, path: Path) -> list[str]:
    values = _listed(metadata, key, path)
    strings = [value for value in values if isinstance(value, str)]
    if len(strings) != len(values):
        _refuse(f"need strings under `{key}` in `{path}`")
    return strings


def _objects(metadata: dict[str, str], key: str, path: Path) -> list[dict[str, str]]:
    objects: list[dict[str, str]] = []
    for value in _listed(metadata, key, path):
        if not isinstance(value, dict):
            _refuse(f"need objects under `{key}` in `{path}`")
        objects.append({name: text for name, text in value.items() if isinstance(text, str)})
    return objects


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("prompt-cache", message, hint) from None
