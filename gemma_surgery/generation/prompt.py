"""From what the user says to what the model reads: tokens, and the pixels of every image block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.chat_template import gemma_turns
from gemma_surgery.generation.conversation import Message, Turn, check_conversation, place_images
from gemma_surgery.generation.image_file import ImageSource
from gemma_surgery.generation.images import ImageSettings, Pixels, image_blocks
from gemma_surgery.generation.pan_and_scan import expanded
from gemma_surgery.generation.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemma_surgery.models.gemma3.config import ModelConfig


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the model reads.

    Attributes:
        tokens: ids, images expanded to begin-of-image, P image tokens, end-of-image.
        pixels: float32 `[N, S, S, 3]`, one entry per image block in the order of `tokens`, or None.
        image_spans: `[start, end)` in `tokens` of the image tokens of every block.
        text: what the tokens were made of, images as placeholders.
    """

    tokens: list[int]
    pixels: Pixels | None = None
    image_spans: tuple[tuple[int, int], ...] = ()
    text: str = field(default="", repr=False)

    def followed_by(self, tokens: Sequence[int]) -> Prompt:
        """Return the prompt with generated tokens behind it."""
        return Prompt([*self.tokens, *tokens], self.pixels, self.image_spans, self.text)


def build_prompt(
    tokenizer: Tokenizer,
    config: ModelConfig,
    content: str | Sequence[Message],
    images: Sequence[ImageSource] = (),
    *,
    chat: bool = True,
    system: str | None = None,
    add_generation_prompt: bool = True,
    settings: ImageSettings | None = None,
    pan_and_scan: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """Build a prompt.

    Every `<start_of_image>` in the text stands for one image, as do the image parts of messages. Images
    without any placeholder come before the last user turn's text. The names of control tokens in the text
    become these tokens, as in the reference.

    Args:
        tokenizer: the checkpoint's.
        config: the model's.
        content: the text of one user turn, or messages `{"role", "content"}` with text or a list of parts
            `{"type": "text", "text"}` and `{"type": "image"}`, the latter with or without an `image`.
        images: in the order of their places.
        chat: write turns, by the checkpoint's chat template or in Gemma 3's format. If False, `content` is a
            text that is fed as it is behind the begin-of-sequence token.
        system: a system prompt, for chats.
        add_generation_prompt: end with the opening of the model's turn, for chats.
        settings: how images are prepared; None: as the tokenizer's folder says.
        pan_and_scan: cut images far from square; None: as the folder says. Not beside `settings`.
        variables: further names for the chat template.

    Raises:
        SurgeryError: nothing is said, images and places differ in number, the model takes no images, an
            image or the template is unusable, or the text holds tokens that the model does not know.
    """
    if chat:
        turns = check_conversation(content, system)
        text, sources = _written(tokenizer, config, turns, images, add_generation_prompt, variables or {})
    else:
        text, sources = _raw(tokenizer, config, content, images, system)
    if sources and config.vision is None:
        _refuse("need a model with a vision tower for images, got a text-only one", "leave the images out")
    blocks: list[Pixels] = []
    if sources and config.vision is not None:
        if settings is None:
            settings = ImageSettings.load(tokenizer.folder, config.vision.image_size, pan_and_scan)
        blocks = [image_blocks(source, settings) for source in sources]
    tokens = _tokens(tokenizer, config, text, [len(block) - 1 for block in blocks])
    spans = _spans(tokens, config)
    per_image = config.vision.tokens_per_image if config.vision is not None else 0
    num_blocks = sum(map(len, blocks))
    if [end - start for start, end in spans] != [per_image] * num_blocks:
        # Only a tokenizer that lacks the image tokens gets here.
        _refuse(f"need {num_blocks} blocks of {per_image} image tokens, got {len(spans)} from the tokenizer")
    return Prompt(tokens, np.concatenate(blocks) if blocks else None, spans, text)


def image_spans(tokens: Sequence[int], image_token_id: int) -> tuple[tuple[int, int], ...]:
    """Return `[start, end)` of every run of image tokens."""
    is_image = np.asarray(tokens, np.int64) == image_token_id
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_image, [False]))))
    return tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def _spans(tokens: Sequence[int], config: ModelConfig) -> tuple[tuple[int, int], ...]:
    if config.vision is None or config.image_token_id is None:
        return ()
    return image_spans(tokens, config.image_token_id)


def _written(
    tokenizer: Tokenizer,
    config: ModelConfig,
    turns: list[Turn],
    images: Sequence[ImageSource],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> tuple[str, list[ImageSource]]:
    """Write a conversation as text; return it with the images in the order of their placeholders."""
    placeholder = _placeholder(tokenizer, config)
    parts = [part for turn in turns for part in turn.parts]
    own = [part.image for part in parts if part.image is not None]
    if own and images:
        _refuse(
            f"need images inside the messages or beside them, got {len(own)} inside and {len(images)} beside"
        )
    sources = own or list(images)
    has_places = any(
        part.text is None or (placeholder is not None and placeholder in part.text) for part in parts
    )
    if sources and not has_places:
        turns = place_images(turns, len(sources))
    said = [turn for turn in turns if turn.role == "user"]
    if not said or not any(part.text is None or part.text.strip() for part in said[-1].parts):
        _refuse("need a prompt, got an empty one")
    template = tokenizer.template
    if template is None:
        text = gemma_turns(turns, add_generation_prompt, tokenizer.special_strings["bos_token"])
    else:
        text = template.render(turns, add_generation_prompt, {**tokenizer.special_strings, **variables})
    _check_count(text, placeholder, len(sources), config)
    return text, sources


def _raw(
    tokenizer: Tokenizer,
    config: ModelConfig,
    content: str | Sequence[Message],
    images: Sequence[ImageSource],
    system: str | None,
) -> tuple[str, list[ImageSource]]:
    """Return a text that is fed as it is, images without a placeholder in front."""
    if not isinstance(content, str):
        _refuse("need one text without a chat template, got messages")
    if system is not None:
        _refuse("need a chat template for a system prompt, got one without", "put it into the prompt")
    if not content and not images:
        _refuse("need a prompt, got an empty one")
    placeholder = _placeholder(tokenizer, config)
    if images and placeholder is not None and placeholder not in content:
        content = placeholder * len(images) + content
    _check_count(content, placeholder, len(images), config)
    return content, list(images)


def _placeholder(tokenizer: Tokenizer, config: ModelConfig) -> str | None:
    """What stands for an image in text, None for models that take no images."""
    return None if config.vision is None else _name(tokenizer, config.boi_token_id)


def _check_count(text: str, placeholder: str | None, num_images: int, config: ModelConfig) -> None:
    if placeholder is None:
        return
    places = text.count(placeholder)
    if places != num_images:
        _refuse(
            f"need as many images as `{placeholder}` in the prompt, "
            f"got {_count(num_images, 'image')} for {_count(places, 'place')}",
            "write the placeholder only where an image belongs",
        )


def _tokens(tokenizer: Tokenizer, config: ModelConfig, text: str, num_crops: Sequence[int]) -> list[int]:
    """Expand placeholders and encode; the begin-of-sequence token comes first, once."""
    if config.vision is not None:
        text = _with_image_tokens(tokenizer, config, config.vision.tokens_per_image, text, num_crops)
    tokens = tokenizer.encode(text)
    if tokens[:1] != [config.bos_token_id]:
        tokens.insert(0, config.bos_token_id)
    unknown = next((token for token in tokens if token >= config.text.vocab_size), None)
    if unknown is not None:
        shown = literal(tokenizer.token_of(unknown) or "")
        _refuse(f"need token ids below {config.text.vocab_size:,}, got {shown} ({unknown:,}) in the prompt")
    return tokens


def _with_image_tokens(
    tokenizer: Tokenizer, config: ModelConfig, per_image: int, text: str, num_crops: Sequence[int]
) -> str:
    begin, end = _name(tokenizer, config.boi_token_id), _name(tokenizer, config.eoi_token_id)
    image_token = _name(tokenizer, config.image_token_id)
    if image_token in text:
        _refuse(
            f"need images in the prompt as `{begin}`, got the image token `{image_token}` itself",
            "leave it out: the placeholder is expanded to as many as the model needs",
        )
    block = f"\n\n{begin}{image_token * per_image}{end}\n\n"
    pieces = text.split(begin) if num_crops else [text]
    parts = [pieces[0]]
    for crops, piece in zip(num_crops, pieces[1:], strict=True):
        parts += [expanded(block, crops), piece]
    return "".join(parts)


def _name(tokenizer: Tokenizer, token_id: int | None) -> str:
    name = None if token_id is None else tokenizer.token_of(token_id)
    if name is None:
        raise SurgeryError(
            "tokenizer",
            f"need the image tokens that `config.json` names, got {token_id} in `{tokenizer.folder}`",
        )
    return name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("prompt", message, hint) from None
