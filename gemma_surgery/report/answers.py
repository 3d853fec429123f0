"""What original and output answer to the same prompts and images, greedily."""

from __future__ import annotations

import base64
import gc
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.checkpoint.json_types import read_small_file
from gemma_surgery.errors import SurgeryError
from gemma_surgery.report.fields import MAX_BYTES, WHERE

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage

MAX_TOKENS = 160
THUMBNAIL_PIXELS = 320
# Of a thumbnail as base64, and of all of them: the page stays below 1 MB.
THUMBNAIL_BYTES, ALL_THUMBNAILS_BYTES = 40_000, 400_000
QUALITIES = (85, 70, 55, 40, 25)

# Contractions, arithmetic, lists, code, a story and a fact: where cuts show first.
PROMPTS = (
    "Anna is tired and her brother isn't. Write two sentences in which each says how they feel.",
    "What is 17 times 6? Answer with the number only.",
    "List three things that you need to bake bread.",
    "Write a Python function that returns the largest number of a list.",
    "Tell a story of four sentences about a lighthouse.",
    "Why is the sky blue? Explain it to a child in two sentences.",
)


@dataclass(frozen=True)
class Answer:
    """One question, and both answers.

    Attributes:
        prompt: the user's turn.
        before: the original's answer.
        after: the output's.
        thumbnail: of the image shown, as a data URI; empty for text.
    """

    prompt: str
    before: str
    after: str
    thumbnail: str = ""


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line.

    Raises:
        SurgeryError: unreadable, not UTF-8, or empty.
    """
    try:
        lines = read_small_file(path, MAX_BYTES, WHERE).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise SurgeryError(WHERE, f"need prompts in UTF-8, got other bytes in `{path.name}`") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise SurgeryError(WHERE, f"need a prompt a line, got none in `{path.name}`")
    return found


def ask_both(
    reference: str | Path,
    output: Path,
    prompts: Sequence[str],
    images: Sequence[Passage] = (),
    *,
    max_tokens: int = MAX_TOKENS,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[list[Answer], list[Answer]]:
    """Let original and output answer, one whole model in memory at a time.

    Args:
        reference: folder or repository id of the original.
        output: folder.
        prompts: user turns.
        images: image passages, with their prompts.
        max_tokens: of an answer.
        advance: called with 1 after each answer.

    Returns:
        Answers to the prompts, and to the images.

    Raises:
        SurgeryError: a model or an image cannot be used.
    """
    thumbnails = [thumbnail(_image_of(passage), len(images)) for passage in images]
    before, after = (_answers(model, prompts, images, max_tokens, advance) for model in (reference, output))
    asked = [*prompts, *(passage.prompt for passage in images)]
    pictures = [*([""] * len(prompts)), *thumbnails]
    found = [Answer(*row) for row in zip(asked, before, after, pictures, strict=True)]
    return found[: len(prompts)], found[len(prompts) :]


def thumbnail(path: Path, count: int = 1) -> str:
    """A small JPEG of an image as a data URI of at most `THUMBNAIL_BYTES`, less among many.

    Raises:
        SurgeryError: not a readable image.
    """
    from PIL import Image

    from gemma_surgery.generation.image_file import open_image

    room = min(THUMBNAIL_BYTES, ALL_THUMBNAILS_BYTES // max(1, count))
    image = open_image(path).convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    pixels = THUMBNAIL_PIXELS
    while True:
        small = flat.copy()
        small.thumbnail((pixels, pixels))
        for quality in QUALITIES:
            data = io.BytesIO()
            small.save(data, "JPEG", quality=quality, optimize=True)
            address = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
            if len(address) <= room or pixels < 2:
                return address
        pixels //= 2


def _answers(
    model: str | Path,
    prompts: Sequence[str],
    images: Sequence[Passage],
    max_tokens: int,
    advance: Callable[[int], None],
) -> list[str]:
    import mlx.core as mx

    from gemma_surgery.generation.loading import load
    from gemma_surgery.generation.prompt import build_prompt
    from gemma_surgery.generation.stream import generate

    gc.collect()
    mx.clear_cache()
    loaded, tokenizer = load(model)
    texts: list[str] = []
    for text, shown in [*((prompt, []) for prompt in prompts), *((p.prompt, [_image_of(p)]) for p in images)]:
        prompt = build_prompt(tokenizer, loaded.config, text, shown)
        texts.append(generate(loaded, tokenizer, prompt, max_tokens=max_tokens).text)
        advance(1)
    return texts


def _image_of(passage: Passage) -> Path:
    assert passage.image is not None
    return passage.image
