"""From log-probabilities to a token: greedy, temperature, top-k, top-p, min-p.

The filters run in llama.cpp's order: top-k, then top-p over what top-k left, then min-p, and the temperature
last, so that no filter depends on it. mlx-lm, too, applies the temperature last, but its top-p and min-p come
before its top-k, and it lets top-p see the whole vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any, NoReturn

import mlx.core as mx

from gemma_surgery.errors import SurgeryError

MAX_SEED = 2**64 - 1

# Log-probabilities [B, R] to rows [B].
SamplerFunction = Callable[[mx.array], mx.array]


class Sampler:
    """Draws one row per distribution; call it with log-probabilities `[B, R]` to get rows `[B]`.

    Random numbers come from a key of its own that is split at every draw: no global state, and the same seed
    and the same calls give the same tokens. A sampler that is used again goes on where it stopped.

    Args:
        temperature: what log-probabilities are divided by; 0 takes the most likely row and draws nothing.
        top_k: keep the k most likely rows; 0 keeps all.
        top_p: keep the most likely rows until their mass reaches this share; 1 keeps all.
        min_p: keep rows at least this times as likely as the most likely one; 0 keeps all.
        seed: of the random numbers, 0 to 2^64 - 1; None takes one from the operating system.

    Rows that tie with the last one that a filter keeps are kept, too.

    Raises:
        SurgeryError: a value outside its range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if not (_is_number(temperature) and 0 <= temperature < math.inf):
            _refuse("temperature of 0 or more", temperature, "0 is greedy")
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 0:
            _refuse("whole `top_k` of 0 or more", top_k, "0 turns the filter off")
        if not (_is_number(top_p) and 0 < top_p <= 1):
            _refuse("`top_p` above 0 and up to 1", top_p, "1 turns the filter off")
        if not (_is_number(min_p) and 0 <= min_p <= 1):
            _refuse("`min_p` from 0 to 1", min_p, "0 turns the filter off")
        if seed is None:
            seed = secrets.randbits(64)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            _refuse("seed from 0 to 2^64 - 1", seed, None)
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.seed = seed
        self._key = mx.random.key(seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely row is always taken."""
        return self.temperature == 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw one row from each distribution: `[B, R]` -> `[B]`."""
        if self.is_greedy:
            return mx.argmax(logprobs, axis=-1)
        return self.draw(self.weights(logprobs))

    def weights(self, logprobs: mx.array) -> mx.array:
        """What is drawn from, as logarithms up to a constant: float32 `[B, R]`, minus infinity where
        filtered.

        Not for the greedy sampler, which divides by nothing.
        """
        logprobs = logprobs.astype(mx.float32)
        top = mx.max(logprobs, axis=-1, keepdims=True)
        # The difference first, so that a tiny temperature cannot turn the best row into minus infinity.
        scaled = (logprobs - top) / self.temperature
        floor = self._floor(logprobs, top)
        return scaled if floor is None else mx.where(logprobs >= floor, scaled, -mx.inf)

    def distribution(self, logprobs: mx.array) -> mx.array:
        """The probabilities that a call draws with: float32 `[B, R]`, zero where filtered, each sum 1."""
        if self.is_greedy:
            best = mx.argmax(logprobs, axis=-1, keepdims=True)
            return (mx.arange(logprobs.shape[-1]) == best).astype(mx.float32)
        return mx.softmax(self.weights(logprobs), axis=-1)

    def draw(self, weights: mx.array) -> mx.array:
        """Draw by logarithmic weights `[B, R]`, with the next random numbers: `[B]`."""
        return mx.random.categorical(weights, key=self.next_key())

    def next_key(self) -> mx.array:
        """A key that was not used before."""
        self._key, key = mx.random.split(self._key)
        return key

    def _floor(self, logprobs: mx.array, top: mx.array) -> mx.array | None:
        """The log-probability `[B, 1]` below which rows are filtered out; None when no filter is on."""
        floor, kept = None, logprobs
        if 0 < self.top_k < logprobs.shape[-1]:
            kept = mx.topk(logprobs, self.top_k, axis=-1)
            floor = mx.min(kept, axis=-1, keepdims=True)
        if self.top_p < 1:
            ordered = -mx.sort(-kept, axis=-1)
            mass_before = mx.cumsum(mx.softmax(ordered, axis=-1), axis=-1, inclusive=False)
            # The first row has no mass before it, so at least one stays.
            last = mx.sum(mass_before < self.top_p, axis=-1, keepdims=True) - 1
            floor = mx.take_along_axis(ordered, last, axis=-1)
        if self.min_p > 0:
            least = top + math.log(self.min_p)
            floor = least if floor is None else mx.maximum(floor, least)
        return floor


def make_sampler(
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
) -> Sampler:
    """A sampler for `stream_generate`; see `Sampler` for the arguments."""
    return Sampler(temperature, top_k, top_p, min_p, seed)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(need: str, got: Any, hint: str | None) -> NoReturn:
    raise SurgeryError("sampler", f"need a {need}, got {got!r}", hint)
