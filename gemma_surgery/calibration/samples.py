"""From passages to what a model reads: token ids, and where its own turn begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prompt import build_prompt

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.generation.images import Pixels
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models.gemma3.config import ModelConfig

# Of a text without a prompt, this share is what the user gives and asks to be continued.
GIVEN_SHARE = 0.25
CONTINUE = "Continue this text:\n\n"


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence.

    Attributes:
        tokens: int32 `[T]`, the begin-of-sequence token first.
        answer_start: index of the first token of the model's turn; 1 for raw text; T for a prompt alone.
        pixels: makes float32 `[N, S, S, 3]`, one entry per run of image tokens; None without images.
    """

    tokens: npt.NDArray[np.int32]
    answer_start: int
    pixels: Callable[[], Pixels] | None = None


def make_samples(
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    chat: bool,
    max_tokens: int,
) -> list[Sample]:
    """Encode passages as the model meets them.

    Args:
        passages: at least one.
        tokenizer: the checkpoint's.
        config: the model's.
        chat: write a user's and a model's turn, the latter closed; a text without a prompt is given in part
            and continued. If False, prompt and text follow the begin-of-sequence token as they are.
        max_tokens: tokens of a sample at most; a longer text is cut, a prompt with images is not.

    Raises:
        SurgeryError: nothing to encode, an image cannot be read, or a text-only model is shown one.
    """
    if max_tokens < 2:
        raise SurgeryError("calibration", f"need at least 2 tokens per sample, got {max_tokens}")
    if not passages:
        raise SurgeryError("calibration", "need at least one passage, got none")
    return [_sample(passage, tokenizer, config, chat, max_tokens) for passage in passages]


def _sample(
    passage: Passage, tokenizer: Tokenizer, config: ModelConfig, chat: bool, max_tokens: int
) -> Sample:
    prompt, text = passage.prompt, passage.text
    if passage.image is None and not chat:
        whole = "\n\n".join(part for part in (prompt, text) if part)
        tokens = build_prompt(tokenizer, config, whole, chat=False).tokens
        return Sample(np.asarray(tokens[:max_tokens], np.int32), 1)
    if passage.image is None and not prompt:
        given = _given(text)
        prompt, text = CONTINUE + text[:given].rstrip(), text[given:].lstrip()
    images = [] if passage.image is None else [passage.image]
    build = partial(build_prompt, tokenizer, config, prompt, images, chat=chat)
    asked = build().tokens
    # What a generation would have appended: no merge crosses from the prompt into the answer.
    answer = tokenizer.encode(text, special_tokens=False) if text else []
    if answer and chat:
        answer.append(_end_of_turn(tokenizer, config))
    room = max(max_tokens, len(asked)) if images else max_tokens
    tokens = [*asked, *answer][:room]

    def pixels() -> Pixels:
        made = build().pixels
        assert made is not None
        return made

    start = min(len(asked), len(tokens))
    return Sample(np.asarray(tokens, np.int32), start, pixels if images else None)


def _given(text: str) -> int:
    """Where the part of a text that the user gives ends: behind a word."""
    wanted = int(len(text) * GIVEN_SHARE)
    space = text.find(" ", wanted)
    return wanted if space < 0 else space


def _end_of_turn(tokenizer: Tokenizer, config: ModelConfig) -> int:
    found = tokenizer.id_of("<end_of_turn>")
    return config.eos_token_ids[0] if found is None else found
