"""What is asked for, checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.drafting import Speller
from gemma_surgery.generation.prefill import find_image_blocks
from gemma_surgery.generation.prompt import Prompt
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.generation.vocabularies import check_same_vocabulary, known_ids

if TYPE_CHECKING:
    from gemma_surgery.models import Gemma3Model

NO_LIMIT = -1


@dataclass(frozen=True)
class Request:
    """The new tokens to process.

    Attributes:
        tokens: original ids, images expanded.
        pixels: float32 `[N, S, S, 3]`, or None.
        room: tokens that fit into the context after them.
    """

    tokens: list[int]
    pixels: np.ndarray | None
    room: int


def read_prompt(
    model: Gemma3Model, tokenizer: Tokenizer, prompt: str | Sequence[int] | Prompt, offset: int
) -> Request:
    """Tokens and pixels of a prompt.

    Args:
        model: that is to process it.
        tokenizer: of the model.
        prompt: text, which gets the BOS token in front unless it has it or continues a cache; or ids; or a
            `Prompt`.
        offset: tokens that the cache holds already.

    Raises:
        SurgeryError: no tokens, an id that the model lacks, images that do not match, or no room for an
            answer.
    """
    pixels: np.ndarray | None = None
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt)
        bos = tokenizer.bos_id
        if bos is not None and offset == 0 and tokens[:1] != [bos]:
            tokens = [bos, *tokens]
    elif isinstance(prompt, Prompt):
        tokens, pixels = [int(token) for token in prompt.tokens], prompt.pixels
    else:
        tokens = [int(token) for token in prompt]
    if pixels is not None and len(pixels) == 0:
        pixels = None
    if not tokens:
        _refuse("need a prompt of at least one token, got an empty one")
    room = model.config.text.max_position_embeddings - offset - len(tokens)
    if room < 1:
        before = f" after {offset:,} in the cache" if offset else ""
        _refuse(
            f"need a prompt of fewer than {model.config.text.max_position_embeddings:,} tokens,"
            f" the context of the model, got {len(tokens):,}{before}",
            "shorten the prompt, or start a new conversation" if offset else "shorten the prompt",
        )
    _check_ids(model, tokenizer, tokens)
    find_image_blocks(model, tokens, 0 if pixels is None else len(pixels))
    return Request(tokens, pixels, room)


def token_limit(max_tokens: int, room: int) -> int:
    """Tokens to generate at most, `NO_LIMIT` meaning as many as there is room for.

    Raises:
        SurgeryError: neither a positive number nor `NO_LIMIT`.
    """
    if max_tokens != NO_LIMIT and max_tokens < 1:
        _refuse(f"need 1 token or more to generate, got {max_tokens}", f"{NO_LIMIT} means no limit")
    return room if max_tokens == NO_LIMIT else min(max_tokens, room)


@dataclass(frozen=True)
class Draft:
    """A draft model that was found to fit a main model; make it once and use it for many prompts.

    Attributes:
        model: the draft model.
        tokenizer: its tokenizer.
        speller: writes a token of the main model in the draft's tokens.
    """

    model: Gemma3Model
    tokenizer: Tokenizer
    speller: Speller

    @staticmethod
    def of(
        model: Gemma3Model,
        tokenizer: Tokenizer,
        draft_model: Gemma3Model,
        draft_tokenizer: Tokenizer | None = None,
    ) -> Draft:
        """Check that ids mean the same to both models.

        Args:
            model: the main model.
            tokenizer: its tokenizer.
            draft_model: a smaller one.
            draft_tokenizer: its tokenizer; read from its checkpoint by default.

        Raises:
            SurgeryError: they do not.
        """
        draft_tokenizer = draft_tokenizer or Tokenizer.load(draft_model.checkpoint)
        num_ids = max(model.config.text.vocab_size, draft_model.config.text.vocab_size)
        check_same_vocabulary(tokenizer, draft_tokenizer, num_ids)

        def spell(token: int) -> list[int]:
            # A control token is left out: its name in letters would mean something else.
            return draft_tokenizer.encode(tokenizer.decode([token], skip_special=True), special_tokens=False)

        return Draft(draft_model, draft_tokenizer, spell)

    def shared_prompt(self, model: Gemma3Model, request: Request) -> Request:
        """The main model's prompt for the draft model, images included.

        Raises:
            SurgeryError: there are images, and the draft model sees them in another size or not at all.
        """
        config = self.model.config
        if request.pixels is not None:
            mine, its = model.config.vision, config.vision
            same_image_token = model.config.image_token_id == config.image_token_id
            if (
                mine is None
                or its is None
                or not same_image_token
                or (mine.image_size, mine.tokens_per_image) != (its.image_size, its.tokens_per_image)
            ):
                _refuse(
                    "need a draft model that sees images as the main model does, got"
                    f" {_image_form(self.model)} in `{self.model.checkpoint.path}`"
                    f" and {_image_form(model)} in `{model.checkpoint.path}`",
                    "give `draft_prompt`, built with the draft model's own config",
                )
        known = known_ids(self.model)
        tokens: list[int] = []
        for token in request.tokens:
            if token == config.image_token_id or (token < len(known) and known[token]):
                tokens.append(token)
            else:
                tokens += [t for t in self.speller(token) if t < len(known) and known[t]]
        return Request(tokens, request.pixels, config.text.max_position_embeddings - len(tokens))


def _image_form(model: Gemma3Model) -> str:
    vision = model.config.vision
    if vision is None:
        return "no vision tower"
    return f"{vision.image_size} pixels and {vision.tokens_per_image} tokens"


def _check_ids(model: Gemma3Model, tokenizer: Tokenizer, tokens: list[int]) -> None:
    ids = np.asarray(tokens, np.int64)
    size = model.config.text.vocab_size
    ids = ids[ids != model.config.image_token_id]
    outside = ids[(ids < 0) | (ids >= size)]
    if outside.size:
        _refuse(f"need token ids from 0 to {size - 1:,}, got {int(outside[0])} in the prompt")
    pruned = ids[~known_ids(model)[ids]]
    if pruned.size:
        name = tokenizer.token_of(int(pruned[0]))
        shown = f" ({literal(name)})" if name is not None else ""
        _refuse(
            f"need token ids that the model has, got the pruned {int(pruned[0])}{shown} in the prompt",
            f"encode the text with the tokenizer of `{model.checkpoint.path}`",
        )


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("generate", message, hint)
