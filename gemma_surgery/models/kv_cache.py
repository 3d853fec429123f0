"""Keys and values of the tokens seen so far, and which of them the next tokens may look at.

Buffers grow by steps and stay in the order of time. A local layer drops what has left its window when its
buffer is full: no ring, so no wrapped order, and the last tokens can be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import mlx.core as mx

from gemma_surgery import ops
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.encoding import AFFINE_BITS, AFFINE_GROUPS

# Tokens that a buffer grows by.
STEP = 256


@dataclass(frozen=True)
class CacheOptions:
    """How keys and values are kept.

    Attributes:
        bits: quantize them to 2, 3, 4, 5, 6 or 8 bits (MLX's affine format); None: as they are computed.
        group_size: values per scale: 32, 64 or 128, a divisor of the head dimension.
        quantize_after: tokens seen before quantization sets in.
        slack: tokens that local layers keep beyond their window, so that as many can be taken back.
    """

    bits: int | None = None
    group_size: int = 64
    quantize_after: int = 0
    slack: int = 0

    def check(self, head_dim: int) -> None:
        """Raise SurgeryError unless head dimension D can be stored like this."""
        if self.quantize_after < 0 or self.slack < 0:
            _refuse(f"need counts of tokens, got quantize_after={self.quantize_after}, slack={self.slack}")
        if self.bits is None:
            return
        if self.bits not in AFFINE_BITS:
            _refuse(f"need bits out of {', '.join(map(str, AFFINE_BITS))}, got {self.bits}")
        if self.group_size not in AFFINE_GROUPS or head_dim % self.group_size:
            fits = [str(group) for group in AFFINE_GROUPS if head_dim % group == 0]
            raise SurgeryError(
                "kv-cache",
                f"need a group size that divides the head dimension {head_dim}, got {self.group_size}",
                f"use {' or '.join(fits)}" if fits else "leave keys and values unquantized",
            )


DENSE = CacheOptions()


class Sight(NamedTuple):
    """What T new queries may see of what `KVCache.attend` shows them.

    On a CPU the rule itself, which the kernels apply tile by tile; on a GPU a mask for MLX's attention.
    """

    window: int | None = None
    image_blocks: mx.array | None = None
    mask: mx.array | str | None = None


class KVCache:
    """Keys and values `[B, K, T, D]` of one layer.

    Args:
        window: tokens that a query sees, itself included; None for all.
        options: storage.

    Attributes:
        offset: tokens seen so far, the position of the next one.
    """

    def __init__(self, window: int | None, options: CacheOptions = DENSE) -> None:
        self.window, self.options = window, options
        self.offset = 0
        # Dense: keys, values. Quantized: codes, scales, biases of keys, then of values.
        self._buffers: list[mx.array] = []
        self._start = self._end = 0

    @property
    def is_quantized(self) -> bool:
        """Whether what is held is quantized by now."""
        return len(self._buffers) == 6

    @property
    def held(self) -> int:
        """Tokens held; a local layer forgets what no query can see any more."""
        return self._end - self._start

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def sight(self, num_tokens: int, image_blocks: mx.array | None = None) -> Sight:
        """What the next `num_tokens` queries may see; arguments as those of `mask`."""
        will_quantize = self.options.bits is not None
        if mx.default_device() == mx.Device(mx.cpu) and not will_quantize:
            return Sight(self.window, image_blocks)
        return Sight(self.window, image_blocks, self.mask(num_tokens, image_blocks))

    def mask(self, num_tokens: int, image_blocks: mx.array | None = None) -> mx.array | str | None:
        """What the next `num_tokens` queries may see of what `attend` shows them.

        Args:
            num_tokens: T.
            image_blocks: int32 `[T]`: 0 for text, else the number of the image: its tokens see each other.

        Returns:
            None (everything), ``causal``, or booleans `[T, S]`.
        """
        past = self._visible_past()
        inside = self.window is None or past + num_tokens <= self.window
        if image_blocks is None and inside:
            return None if num_tokens == 1 else "causal"
        if image_blocks is None and num_tokens == 1:
            return None
        queries = mx.arange(past, past + num_tokens)[:, None]
        keys = mx.arange(past + num_tokens)[None]
        allowed = keys <= queries
        if image_blocks is not None:
            blocks = mx.concatenate([mx.zeros((past,), image_blocks.dtype), image_blocks])
            allowed = allowed | ((image_blocks[:, None] == blocks[None]) & (image_blocks[:, None] > 0))
        if not inside and self.window is not None:
            allowed = allowed & (keys > queries - self.window)
        return allowed

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sight: Sight
    ) -> mx.array:
        """Append keys and values of T tokens and attend to all that may be visible.

        Args:
            queries: `[B, H, T, D]`; H is a multiple of K.
            keys: `[B, K, T, D]`, rotated.
            values: `[B, K, T, D]`.
            scale: factor on `q . k`.
            sight: from `sight`, for the same T.

        Returns:
            `[B, H, T, D]`.
        """
        num_tokens = keys.shape[2]
        first = self._visible_past()
        self._append(keys, values)
        view = [buffer[:, :, self._end - num_tokens - first : self._end] for buffer in self._buffers]
        if self.is_quantized:
            return self._attend_quantized(queries, view, scale, sight.mask)
        if mx.default_device() == mx.Device(mx.cpu):
            keys, values = view
            return ops.attention(
                queries,
                keys,
                values,
                scale,
                causal=True,
                window=sight.window,
                image_blocks=sight.image_blocks,
            )
        return mx.fast.scaled_dot_product_attention(queries, *view, scale=scale, mask=sight.mask)

    def can_trim(self, count: int) -> bool:
        """Whether the last `count` tokens can be forgotten without a trace."""
        left = self.offset - count
        if not 0 <= count <= self.offset:
            return False
        return self.window is None or self.held - count >= min(self.window - 1, left)

    def trim(self, count: int) -> None:
        """Forget the last `count` tokens.

        Raises:
            SurgeryError: a local layer no longer holds what it would see then.
        """
        if not self.can_trim(count):
            _refuse(
                f"need {count} tokens to take back within a window of {self.window}, "
                f"got {self.held} held of {self.offset} seen",
                "make the cache with more `slack`",
            )
        self._end -= count
        self.offset -= count

    def state(self) -> dict[str, mx.array]:
        """What is held, `[B, K, S, *]` each, for saving."""
        return {str(i): buffer[:, :, self._start : self._end] for i, buffer in enumerate(self._buffers)}

    def meta(self) -> dict[str, str]:
        """Everything else that `restored` needs."""
        options = self.options
        return {
            "offset": str(self.offset),
            "window": "" if self.window is None else str(self.window),
            "bits": "" if options.bits is None else str(options.bits),
            "group_size": str(options.group_size),
            "quantize_after": str(options.quantize_after),
            "slack": str(options.slack),
        }

    @staticmethod
    def restored(state: dict[str, mx.array], meta: dict[str, str]) -> KVCache:
        """A cache from its `state` and `meta`.

        Raises:
            SurgeryError: they do not belong together.
        """
        try:
            options = CacheOptions(
                int(meta["bits"]) if meta["bits"] else None,
                int(meta["group_size"]),
                int(meta["quantize_after"]),
                int(meta["slack"]),
            )
            cache = KVCache(int(meta["window"]) if meta["window"] else None, options)
            cache.offset = int(meta["offset"])
            cache._buffers = [state[str(i)] for i in range(len(state))]
        except (KeyError, ValueError) as error:
            _refuse(f"cannot restore a cache: {error!r}")
        lengths = {buffer.shape[2] for buffer in cache._buffers if buffer.ndim == 4}
        cache._end = max(lengths, default=0)
        needed = cache.offset if cache.window is None else min(cache.window - 1, cache.offset)
        if len(state) not in (0, 2, 6) or len(lengths) > 1 or not needed <= cache._end <= cache.offset:
            _refuse(f"cannot restore a cache of {cache.offset} tokens from {len(state)} arrays of {lengths}")
        return cache

    def _visible_past(self) -> int:
        return self.held if self.window is None else min(self.held, self.window - 1)

    def _append(self, keys: mx.array, values: mx.array) -> None:
        num_tokens = keys.shape[2]
        self.offset += num_tokens
        options = self.options
        new = [keys, values]
        if options.bits is not None and (self.is_quantized or self.offset > options.quantize_after):
            if self._buffers and not self.is_quantized:
                held = [buffer[:, :, self._start : self._end] for buffer in self._buffers]
                self._buffers = self._quantized(held)
                self._start, self._end = 0, self._end - self._start
            new = self._quantized(new)
        if self.window is not None:
            self._start = max(self._start, self._end - (self.window - 1 + options.slack))
        if not self._buffers or self._end + num_tokens > self._buffers[0].shape[2]:
            self._grow(new, num_tokens)
        end = self._end + num_tokens
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer[:, :, self._end : end] = part
        self._end = end

    def _grow(self, new: list[mx.array], num_tokens: int) -> None:
        room = -(-num_tokens // STEP) * STEP
        grown = []
        for index, part in enumerate(new):
            batch, heads, _, width = part.shape
            tail = mx.zeros((batch, heads, room, width), part.dtype)
            if self._buffers:
                kept = self._buffers[index][:, :, self._start : self._end]
                tail = mx.concatenate([kept, tail], axis=2)
            grown.append(tail)
        self._buffers = grown
        self._start, self._end = 0, self.held

    def _quantized(self, pair: list[mx.array]) -> list[mx.array]:
        options = self.options
        return [
            part for x in pair for part in mx.quantize(x, group_size=options.group_size, bits=options.bits)
        ]

    def _attend_quantized(
        self, queries: mx.array, view: list[mx.array], scale: float, mask: mx.array | str | None
    ) -> mx.array:
        batch, heads, num_tokens, dim = queries.shape
        kv_heads, num_keys = view[0].shape[1], view[0].shape[2]
        grouped = (queries * scale).reshape(batch, kv_heads, heads // kv_heads, num_tokens, dim)
        scores = self._product(grouped, view[:3], transpose=True)
        if isinstance(mask, str):
            mask = mx.arange(num_keys)[None] <= mx.arange(num_keys - num_tokens, num_keys)[:, None]
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        shares = mx.softmax(scores, axis=-1, precise=True)
        return self._product(shares, view[3:], transpose=False).reshape(batch, heads, num_tokens, dim)

    def _product(self, x: mx.array, matrix: list[mx.array], transpose: bool) -> mx.array:
        weight, scales, biases = (part[:, :, None] for part in matrix)
        group_size, bits = self.options.group_size, self.options.bits
        return mx.quantized_matmul(x, weight, scales, biases, transpose, group_size, bits)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("kv-cache", message, hint) from None
