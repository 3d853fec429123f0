"""A model of a few tokens whose next-token distribution is a table looked up by all tokens before.

It follows the interface of the real one and computes nothing, so that what the generation loop does can be
compared with a plain reading of the table. A mistake in a cache changes the hash, and so the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np

from gemma_surgery.generation.detokenizer import StreamingDetokenizer
from gemma_surgery.models import CacheOptions, TokenRows
from gemma_surgery.ops.common import chosen_by

TOKENS = ["<pad>", "<eos>", "<bos>", "<img>", *"abcdefgh"]
PAD, EOS, BOS, IMAGE = range(4)
A = TOKENS.index("a")
STATES = 97
IMAGE_TOKENS = 3


class FakeLayer:
    """The ids seen so far, where a real layer has keys and values."""

    window = None

    def __init__(self, options: CacheOptions) -> None:
        self.options, self.ids = options, []

    @property
    def offset(self) -> int:
        return len(self.ids)

    def can_trim(self, count: int) -> bool:
        return count <= len(self.ids)

    def trim(self, count: int) -> None:
        assert 0 <= count <= len(self.ids)
        del self.ids[len(self.ids) - count :]

    def state(self) -> dict[str, mx.array]:
        return {"0": mx.array(self.ids)}


class FakeModel:
    """A table of logits `[states, ids]`; with `order_one` the state is the last token, else a hash of all."""

    def __init__(
        self,
        seed: int = 0,
        kept: Sequence[int] | None = None,
        order_one: bool = False,
        sharpness: float = 2.0,
        context: int = 1000,
        has_vision: bool = True,
        num_ids: int = len(TOKENS),
    ) -> None:
        self.order_one, self.has_vision = order_one, has_vision
        states = num_ids if order_one else STATES
        self.table = (np.random.default_rng(seed).normal(size=(states, num_ids)) * sharpness).astype(
            np.float32
        )
        vision = SimpleNamespace(image_size=2, tokens_per_image=IMAGE_TOKENS)
        self.config = SimpleNamespace(
            text=SimpleNamespace(vocab_size=num_ids, max_position_embeddings=context, num_layers=1),
            vision=vision if has_vision else None,
            image_token_id=IMAGE if has_vision else None,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_ids=(EOS,),
        )
        self.checkpoint = SimpleNamespace(path=Path("fake"))
        self.kept = list(range(num_ids)) if kept is None else sorted(kept)
        if kept is None:
            self.rows = TokenRows(num_ids)
            self.row_ids = np.arange(num_ids)
        else:
            token_map = np.zeros(num_ids, np.int32)
            token_map[self.kept] = np.arange(1, len(self.kept) + 1)
            self.rows = TokenRows(len(self.kept) + 1, token_map, compact=True)
            self.row_ids = np.array([0, *self.kept])
        self.passes: list[int] = []
        self.image_calls: list[np.ndarray] = []
        self.seen_blocks: list[list[int] | None] = []

    def make_cache(self, options: CacheOptions | None = None) -> list[FakeLayer]:
        return [FakeLayer(options or CacheOptions())]

    def embed(self, tokens: mx.array) -> mx.array:
        return tokens.astype(mx.float32)[..., None]

    def embed_images(self, pixels: mx.array) -> mx.array:
        self.image_calls.append(np.asarray(pixels))
        value = 100 + float(pixels.sum().item())
        return mx.full((pixels.shape[0], IMAGE_TOKENS, 1), value)

    def forward(
        self, inputs: mx.array, cache: list[FakeLayer], image_blocks: mx.array | None = None
    ) -> mx.array:
        ids = [round(float(value)) for value in np.asarray(inputs)[0, :, 0]]
        self.passes.append(len(ids))
        self.seen_blocks.append(None if image_blocks is None else image_blocks.tolist())
        hidden = []
        for index in ids:
            cache[0].ids.append(index)
            hidden.append(self.state_after(cache[0].ids))
        return mx.array(hidden, mx.float32)[None, :, None]

    def state_after(self, ids: Sequence[int]) -> int:
        if self.order_one:
            return ids[-1]
        state = 1
        for index in ids:
            state = (state * 31 + index + 7) % STATES
        return state

    def choice(self, hidden: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        return chosen_by(self.logits(hidden), ids)

    def logits(self, hidden: mx.array) -> mx.array:
        states = np.asarray(hidden)[..., 0].astype(int)
        logits = mx.array(self.table[states][..., self.row_ids])
        return logits if self.rows.kept is None else mx.where(self.rows.kept, logits, -mx.inf)

    def probabilities(self, ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        """What a token after `ids` is drawn from, float64 `[ids]`: the image token never."""
        logits = self.table[self.state_after(ids)].astype(np.float64) / temperature
        allowed = np.isin(np.arange(len(logits)), self.kept)
        if self.config.image_token_id is not None:
            allowed[self.config.image_token_id] = False
        weights = np.where(allowed, np.exp(logits - logits.max()), 0)
        return weights / weights.sum()

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The tokens that always taking the most likely one gives, without stopping."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.probabilities(ids).argmax()))
        return ids[len(prompt) :]


class FakeTokenizer:
    """One character per token, control tokens by name."""

    def __init__(self, tokens: Sequence[str] = TOKENS, kept: Sequence[int] | None = None) -> None:
        self.tokens = list(tokens)
        self.kept = set(range(len(self.tokens)) if kept is None else kept)

    bos_id = BOS

    def token_of(self, index: int) -> str | None:
        return self.tokens[index] if index in self.kept and index < len(self.tokens) else None

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        return [self.tokens.index(character) for character in text]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        texts = (self.tokens[index] for index in ids)
        return "".join(text for text in texts if not skip_special or len(text) == 1)

    def detokenizer(self) -> StreamingDetokenizer:
        return StreamingDetokenizer(self.token_of, [])


def chi_square_limit(degrees: int, deviations: float = 4.0) -> float:
    """What a chi-square of so many degrees of freedom exceeds about as rarely as a normal so many deviations.

    Wilson and Hilferty, 1931.
    """
    return degrees * (1 - 2 / (9 * degrees) + deviations * (2 / (9 * degrees)) ** 0.5) ** 3
