"""What a speed measurement feeds a model: random ordinary tokens, and images of the right size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.images import ImageSettings, image_blocks
from gemma_surgery.generation.prompt import Prompt, image_spans
from gemma_surgery.generation.vocabularies import known_ids

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

SEED = 0


@dataclass(frozen=True)
class Workload:
    """One row of a measurement.

    Attributes:
        text_tokens: tokens of the prompt besides those of images, the begin-of-sequence one included.
        generation_tokens: tokens to generate, 2 or more: the first one belongs to the prompt's time.
        num_images: images in front of the text.
        image_files: pictures to take instead of random pixels, as many as `num_images`; empty for none.
    """

    text_tokens: int
    generation_tokens: int
    num_images: int = 0
    image_files: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise SurgeryError unless the counts make sense."""
        if self.text_tokens < 1:
            _refuse(f"need 1 prompt token or more, got {self.text_tokens}")
        if self.generation_tokens < 2:
            _refuse(f"need 2 tokens or more to generate, got {self.generation_tokens}")
        if self.num_images < 0:
            _refuse(f"need a number of images, got {self.num_images}")


def workload_prompt(model: Gemma3Model, tokenizer: Tokenizer, workload: Workload, seed: int = SEED) -> Prompt:
    """Build the prompt of a workload: begin of sequence, the image blocks, random text.

    Args:
        model: whose vocabulary and image size count.
        tokenizer: of the model.
        workload: how much of what.
        seed: of tokens and pixels.

    Raises:
        SurgeryError: there are images and the model takes none, a picture is unusable, or prompt and
            generation together do not fit into the context.
    """
    workload.check()
    config = model.config
    rng = np.random.default_rng(seed)
    pixels = _pixels(model, workload, rng) if workload.num_images else None
    tokens = [config.bos_token_id]
    for _ in range(0 if pixels is None else len(pixels)):
        tokens += _image_block(model)
    tokens += rng.choice(ordinary_ids(model, tokenizer), workload.text_tokens - 1).tolist()
    context = config.text.max_position_embeddings
    if len(tokens) + workload.generation_tokens > context:
        _refuse(
            f"need prompt and generation within the {context:,} tokens of the context,"
            f" got {len(tokens):,} and {workload.generation_tokens:,}"
        )
    spans = image_spans(tokens, config.image_token_id) if config.image_token_id is not None else ()
    return Prompt(tokens, pixels, spans)


def ordinary_ids(model: Gemma3Model, tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids, int64, that have a row and a name, without control and image tokens."""
    config = model.config
    control = {config.bos_token_id, config.pad_token_id, *config.eos_token_ids, *tokenizer.special_ids}
    control |= {index for index in (config.image_token_id, config.boi_token_id, config.eoi_token_id) if index}
    known = np.flatnonzero(known_ids(model)).tolist()
    ids = [index for index in known if index not in control and tokenizer.token_of(index) is not None]
    if not ids:
        _refuse(f"need ordinary tokens in the vocabulary, got none in `{model.checkpoint.path}`")
    return np.array(ids, np.int64)


def _pixels(model: Gemma3Model, workload: Workload, rng: np.random.Generator) -> np.ndarray:
    vision = model.config.vision
    if vision is None:
        _refuse(
            f"need a vision tower for images, got the text-only checkpoint `{model.checkpoint.path}`",
            "measure text alone",
        )
    size = vision.image_size
    if workload.image_files:
        settings = ImageSettings.load(model.checkpoint.path, size)
        return np.concatenate([image_blocks(file, settings) for file in workload.image_files])
    shape = (workload.num_images, size, size, vision.num_channels)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def _image_block(model: Gemma3Model) -> list[int]:
    config = model.config
    assert config.vision is not None and config.image_token_id is not None
    image = [config.image_token_id] * config.vision.tokens_per_image
    return [token for token in (config.boi_token_id, *image, config.eoi_token_id) if token is not None]


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("bench", message, hint)
