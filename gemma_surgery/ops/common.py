"""What the ops share: types, defaults, and which device an op would run on."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

import mlx.core as mx

Stream: TypeAlias = mx.Stream | mx.Device | mx.DeviceType | None
Quantized: TypeAlias = tuple[mx.array, mx.array, mx.array]

GROUP_SIZE = 64
BITS = 4


def on_gpu(stream: Stream) -> bool:
    """Whether an op with this argument runs on a GPU."""
    device = mx.default_device() if stream is None else getattr(stream, "device", stream)
    return device != mx.cpu


def on(stream: Stream) -> contextlib.AbstractContextManager[object]:
    """A context in which MLX's ops run where an op with this argument would."""
    return contextlib.nullcontext() if stream is None else mx.stream(stream)


def chosen_by(logits: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    """The id of the largest logit and its log-probability among the rows whose id is not -1.

    Args:
        logits: float32 `[..., V]`.
        ids: int32 `[V]`.
    """
    logits = mx.where(ids < 0, -mx.inf, logits)
    return ids[mx.argmax(logits, axis=-1)], logits.max(axis=-1) - mx.logsumexp(logits, axis=-1)


def largest(logits: mx.array, k: int, inverse_map: mx.array | None) -> tuple[mx.array, mx.array]:
    """The k largest of `[..., V]`, largest first, and their rows or what the map makes of them."""
    rows = mx.argsort(-logits, axis=-1)[..., :k].astype(mx.int32)
    values = mx.take_along_axis(logits, rows, axis=-1)
    return values, rows if inverse_map is None else inverse_map[rows]
