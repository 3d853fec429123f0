"""Running a prompt through a model in pieces, images included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.models import Gemma3Model, KVCache

# Tokens per forward pass of a prompt; more are faster on a GPU and take more memory.
PREFILL_STEP_SIZE = 512

# Called with the prompt tokens done so far and their total.
ProgressCallback = Callable[[int, int], None]


class ImageBlock(NamedTuple):
    """The tokens `[start, end)` of a prompt that stand for one image."""

    start: int
    end: int


def find_image_blocks(model: Gemma3Model, tokens: Sequence[int], num_images: int) -> list[ImageBlock]:
    """Where the images of a prompt are: runs of the image token, one block of P tokens per image.

    Args:
        model: names the image token and P.
        tokens: ids of the prompt.
        num_images: images that the prompt comes with.

    Raises:
        SurgeryError: another number of blocks, a run that is no multiple of P, or a text-only model.
    """
    image_id = model.config.image_token_id
    places = [index for index, token in enumerate(tokens) if token == image_id]
    if num_images and not model.has_vision:
        raise SurgeryError(
            "generate",
            f"need a checkpoint with a vision tower for {num_images} images,"
            f" got the text-only `{model.checkpoint.path}`",
            "leave the images out, or use a checkpoint that has its vision weights",
        )
    if not places and not num_images:
        return []
    per_image = 0 if model.config.vision is None else model.config.vision.tokens_per_image
    starts = places[:: max(per_image, 1)]
    blocks = [ImageBlock(start, start + per_image) for start in starts]
    covered = [index for block in blocks for index in range(block.start, block.end)]
    if len(blocks) != num_images or covered != places:
        raise SurgeryError(
            "generate",
            f"need {num_images} runs of {per_image} image tokens for {num_images} images,"
            f" got {len(places)} image tokens in the prompt",
            "build the prompt with the checkpoint's own image size, and give it the image's pixels",
        )
    return blocks


def chunk_borders(num_tokens: int, step_size: int, blocks: Sequence[ImageBlock]) -> list[int]:
    """Ends of the pieces to process, none inside an image: an image longer than the step goes whole."""
    ends: list[int] = []
    start = 0
    while start < num_tokens:
        end = min(start + step_size, num_tokens)
        for block in blocks:
            if block.start < end < block.end:
                end = block.start if block.start > start else block.end
        ends.append(end)
        start = end
    return ends


def prefill(
    model: Gemma3Model,
    cache: Sequence[KVCache],
    tokens: Sequence[int],
    pixels: np.ndarray | None = None,
    step_size: int = PREFILL_STEP_SIZE,
    progress: ProgressCallback | None = None,
) -> mx.array:
    """Run a prompt through the model and leave its keys and values in the cache.

    Images are encoded one at a time, when the piece that they are in is due, so their number costs no memory.

    Args:
        model: any.
        cache: grows by the tokens.
        tokens: original ids, at least one.
        pixels: float32 `[N, S, S, 3]` for N runs of image tokens.
        step_size: tokens per piece.
        progress: called before the first piece and after each.

    Returns:
        The hidden state of the last token, `[1, 1, E]`, not evaluated yet.

    Raises:
        SurgeryError: images and image tokens do not match.
    """
    if step_size < 1:
        raise SurgeryError("generate", f"need a prefill step of 1 token or more, got {step_size}")
    blocks = find_image_blocks(model, tokens, 0 if pixels is None else len(pixels))
    total, start = len(tokens), 0
    if progress:
        progress(0, total)
    for end in chunk_borders(total, step_size, blocks):
        here = [(number, block) for number, block in enumerate(blocks) if start <= block.start < end]
        inputs, image_blocks = _inputs(model, tokens[start:end], start, here, pixels)
        hidden = model.forward(inputs, cache, image_blocks)
        if end == total:
            break
        # The keys and values only: what the last layer makes of its input is not wanted here.
        mx.eval([array for layer in cache for array in layer.state().values()])
        mx.clear_cache()
        start = end
        if progress:
            progress(end, total)
    last = hidden[:, -1:]
    if progress:
        mx.eval(last)
        progress(total, total)
    return last


def _inputs(
    model: Gemma3Model,
    tokens: Sequence[int],
    start: int,
    blocks: Sequence[tuple[int, ImageBlock]],
    pixels: np.ndarray | None,
) -> tuple[mx.array, mx.array | None]:
    """Embeddings `[1, T, E]` of a piece that starts at token `start`, and its image numbers int32 `[T]`."""
    if not blocks or pixels is None:
        return model.embed(mx.array(list(tokens), mx.int32)[None]), None
    ids = np.asarray(tokens, np.int32)
    numbers = np.zeros(len(tokens), np.int32)
    for number, block in blocks:
        numbers[block.start - start : block.end - start] = number + 1
    # The image token may have no row in the table: any other id does for places that are overwritten.
    inputs = model.embed(mx.array(np.where(numbers > 0, model.config.pad_token_id, ids))[None])
    for number, block in blocks:
        image = model.embed_images(mx.array(pixels[number : number + 1]))
        mx.eval(image)
        inputs[:, block.start - start : block.end - start] = image.astype(inputs.dtype)
    return inputs, mx.array(numbers)
