"""What is scored: turns of a chat, or chunks of raw text as in llama.cpp for models without a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.passages import passages_sha256
from gemma_surgery.calibration.samples import Sample, make_samples
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.alignment import spell

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models.gemma3.config import ModelConfig

Ids = npt.NDArray[np.int32]

SAMPLES = 32
# llama.cpp's default context.
CHUNK_TOKENS = 512
SMALLEST_CHUNK = 8
MOST_TIMES_TOKENS = 4


@dataclass(frozen=True, eq=False)
class Scored:
    """A sample, and the part of it whose tokens are scored.

    Attributes:
        sample: what the model reads.
        first: index of the first token that is scored, at least 1; the last is the sample's.
    """

    sample: Sample
    first: int

    @property
    def tokens(self) -> Ids:
        """The scored tokens."""
        return self.sample.tokens[self.first :]


@dataclass(frozen=True)
class Protocol:
    """How a measurement was made; two of them compare only where this is equal.

    Attributes:
        name: `chat` (only the model's turns are scored) or `llama.cpp` (the second half of each chunk).
        chunking: what a sample is.
        bos: what a sample begins with.
        chat_format: where the turns' format comes from.
        passages: that were given.
        samples: that were scored.
        max_tokens: tokens of a sample at most.
        data_sha256: identity of the passages.
    """

    name: str
    chunking: str
    bos: str
    chat_format: str
    passages: int
    samples: int
    max_tokens: int
    data_sha256: str

    def to_json(self) -> dict[str, object]:
        """For `--json` and for the keys of caches."""
        return dict(vars(self))

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.name}: {self.chunking}; begins with {self.bos}; chat format: {self.chat_format}; "
            f"{self.samples} samples of {self.passages} passages, data {self.data_sha256[:12]}"
        )


def is_chat(tokenizer: Tokenizer) -> bool:
    """Whether a checkpoint is instruction-tuned: it comes with a chat template."""
    return tokenizer.template is not None


def make_protocol(
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    chat: bool,
    max_tokens: int,
    most_chunks: int | None = None,
) -> tuple[Protocol, list[Scored]]:
    """Encode passages and choose what is scored of them.

    Args:
        passages: at least one.
        tokenizer: of the reference, or of the model if there is none.
        config: of the same.
        chat: score the model's turns; else chunks of the passages' text, one behind the other.
        max_tokens: of a sample.
        most_chunks: chunks to score at most.

    Raises:
        SurgeryError: nothing is left to score, or a passage cannot be encoded.
    """
    shared = {"passages": len(passages), "max_tokens": max_tokens, "data_sha256": passages_sha256(passages)}
    if chat:
        samples = make_samples(passages, tokenizer, config, chat=True, max_tokens=max_tokens)
        scored = [Scored(sample, sample.answer_start) for sample in samples]
        template = tokenizer.template
        protocol = Protocol(
            name="chat",
            chunking=f"one passage per sample, cut at {max_tokens} tokens, only the model's turn is scored",
            bos=tokenizer.special_strings["bos_token"],
            chat_format=f"`{template.file}`" if template else "Gemma's own turns",
            samples=sum(len(each.tokens) > 0 for each in scored),
            **shared,  # type: ignore[arg-type]
        )
    else:
        scored = _chunks(passages, tokenizer, config, max_tokens)[:most_chunks]
        protocol = Protocol(
            name="llama.cpp",
            chunking=(
                f"chunks of {max_tokens} tokens, the first one replaced; the second half of each is scored"
            ),
            bos=tokenizer.special_strings["bos_token"],
            chat_format="none",
            samples=len(scored),
            **shared,  # type: ignore[arg-type]
        )
    if not any(len(each.tokens) for each in scored):
        raise SurgeryError(
            "eval",
            f"need text to score, got {len(passages)} passages without a model's turn",
            "give passages with an answer, or allow more with `--max-tokens`",
        )
    return protocol, scored


def in_other_tokens(
    passages: Sequence[Passage],
    scored: Sequence[Scored],
    source: tuple[Tokenizer, ModelConfig],
    target: tuple[Tokenizer, ModelConfig],
    *,
    chat: bool,
    max_tokens: int,
) -> list[Scored]:
    """What another model reads where one reads `scored`.

    Args:
        passages: that `scored` was made of.
        scored: from `make_protocol`.
        source: tokenizer and config that it was made with.
        target: those of the other model.
        chat: as it was made.
        max_tokens: as it was made; the other tokenizer may take more of them for the same text.

    Raises:
        SurgeryError: a passage cannot be encoded.
    """
    tokenizer, config = target
    same = [_has_all(tokenizer, source[0], each.sample.tokens) for each in scored]
    if not chat:
        return [
            each if is_same else _other_chunk(each, source[0], tokenizer, config.bos_token_id)
            for each, is_same in zip(scored, same, strict=True)
        ]
    # A text without its usual tokens takes more of them, bytes at worst.
    room = min(MOST_TIMES_TOKENS * max_tokens, config.text.max_position_embeddings)
    others: list[Scored] = []
    for passage, each, is_same in zip(passages, scored, same, strict=True):
        if is_same and each.sample.pixels is None:
            others.append(each)
            continue
        (sample,) = make_samples([passage], tokenizer, config, chat=True, max_tokens=room)
        length = sum(map(len, spell(source[0], each.tokens.tolist())))
        others.append(_cut(Scored(sample, sample.answer_start), tokenizer, length))
    return others


def _has_all(tokenizer: Tokenizer, source: Tokenizer, tokens: Ids) -> bool:
    """Whether a tokenizer has these tokens of another under the same ids."""
    return all(tokenizer.token_of(token) == source.token_of(token) for token in np.unique(tokens).tolist())


def _cut(scored: Scored, tokenizer: Tokenizer, length: int) -> Scored:
    """Leave out the tokens that begin after so many bytes."""
    ends = np.cumsum([0, *map(len, spell(tokenizer, scored.tokens.tolist()))])
    count = int((ends[:-1] < length).sum())
    tokens = scored.sample.tokens[: scored.first + count]
    return Scored(replace(scored.sample, tokens=tokens), scored.first)


def _other_chunk(scored: Scored, source: Tokenizer, target: Tokenizer, bos: int) -> Scored:
    """The text of a chunk in another tokenizer's tokens, split where scoring begins."""
    tokens, first = scored.sample.tokens.tolist(), scored.first
    parts = [
        target.encode(source.decode(part), special_tokens=False) for part in (tokens[1:first], tokens[first:])
    ]
    sample = replace(scored.sample, tokens=np.array([bos, *parts[0], *parts[1]], np.int32))
    return Scored(sample, 1 + len(parts[0]))


def _chunks(
    passages: Sequence[Passage], tokenizer: Tokenizer, config: ModelConfig, size: int
) -> list[Scored]:
    """All text in one, cut into chunks of `size` tokens whose first is replaced; the rest is left out."""
    if size < SMALLEST_CHUNK:
        raise SurgeryError("eval", f"need chunks of at least {SMALLEST_CHUNK} tokens, got {size}")
    text = "\n\n".join(
        "\n\n".join(part for part in (passage.prompt, passage.text) if part)
        for passage in passages
        if passage.image is None
    )
    tokens = tokenizer.encode(text, special_tokens=False)
    if len(tokens) < size:
        raise SurgeryError(
            "eval",
            f"need {size} tokens of text or more for one chunk, got {len(tokens)}",
            "give more text, or a smaller `--max-tokens`",
        )
    chunks: list[Scored] = []
    for start in range(0, len(tokens) - size + 1, size):
        chunk = np.array([config.bos_token_id, *tokens[start + 1 : start + size]], np.int32)
        # Position n / 2 is the first whose next token is scored.
        chunks.append(Scored(Sample(chunk, 1), size // 2 + 1))
    return chunks
