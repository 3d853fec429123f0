"""A conversation: turns, images that wait for the next one, and the model that answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_surgery.checkpoint.json_types import read_small_file
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.image_file import MAX_FILE_BYTES, open_image
from gemma_surgery.session.engine import Engine, Question

if TYPE_CHECKING:
    from gemma_surgery.generation.prefill import ProgressCallback
    from gemma_surgery.generation.stream import Generated


@dataclass(frozen=True)
class Picture:
    """An image file as it was when it was attached.

    Attributes:
        path: where it lay.
        data: its bytes.
    """

    path: Path
    data: bytes

    @staticmethod
    def open(path: str | Path) -> Picture:
        """Read an image file.

        Raises:
            SurgeryError: it is not a usable image.
        """
        path = Path(path).expanduser()
        open_image(path)
        return Picture(path.resolve(), read_small_file(path, MAX_FILE_BYTES, "image"))


@dataclass(frozen=True)
class Said:
    """One turn: `role` is `user` or `assistant`."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()

    def as_message(self) -> dict[str, Any]:
        """Return the turn as `build_prompt` takes it, images in front."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture.data} for picture in self.pictures]
        return {"role": self.role, "content": [*parts, {"type": "text", "text": self.text}]}


class ChatSession:
    """A conversation with a model that remembers what it has read.

    An answer that is stopped half way stays in the conversation as far as it came. A message that fails, or
    is stopped before its answer has begun, is forgotten, and its images wait for the next one.

    Args:
        engine: must remember.
        system: instructions for the whole conversation.
        pan_and_scan: also show pieces of images far from square; None: as the checkpoint says.

    Attributes:
        turns: what was said.
        pending: images for the next message.
        last: the last step of the last answer.
    """

    def __init__(self, engine: Engine, system: str | None = None, pan_and_scan: bool | None = None) -> None:
        assert engine.reader is not None
        self.engine, self.reader = engine, engine.reader
        self.system, self.pan_and_scan = system, pan_and_scan
        self.turns: list[Said] = []
        self.pending: list[Picture] = []
        self.last: Generated | None = None

    @property
    def context_tokens(self) -> int:
        """Tokens of the conversation that the model has read or written."""
        return len(self.reader.cache.tokens) if self.turns else 0

    def attach(self, path: str) -> Picture:
        """Add an image to the next message.

        Raises:
            SurgeryError: it is not a usable image, or the model or its draft takes none.
        """
        draft = self.engine.draft
        for model in (self.engine.model, *((draft.model,) if draft is not None else ())):
            if not model.has_vision:
                raise SurgeryError(
                    "chat",
                    f"need a checkpoint with a vision tower for images, got `{model.checkpoint.path}`",
                )
        picture = Picture.open(path)
        self.pending.append(picture)
        return picture

    def say(self, text: str, progress: ProgressCallback | None = None) -> Iterator[Generated]:
        """Say something and yield the answer step by step; closing the iterator stops the answer.

        Args:
            text: the message.
            progress: as for `Engine.answer`.

        Raises:
            SurgeryError: the conversation has outgrown the context, or as `build_prompt`.
        """
        turn = Said("user", text, tuple(self.pending))
        messages = [said.as_message() for said in (*self.turns, turn)]
        question = Question(messages, system=self.system, pan_and_scan=self.pan_and_scan)
        prompt = question.prompt(self.engine.tokenizer, self.engine.model.config)
        context = self.engine.model.config.text.max_position_embeddings
        if len(prompt.tokens) >= context:
            raise SurgeryError(
                "chat",
                f"need a conversation of fewer than {context:,} tokens, the context of the model,"
                f" got {len(prompt.tokens):,} with this message",
                "`/reset` starts a new conversation",
            )
        steps = self.engine.answer(question, prompt, progress)
        answer: list[str] = []
        try:
            for step in steps:
                self.last = step
                answer.append(step.text)
                yield step
        finally:
            if answer:
                self.turns += [turn, Said("assistant", "".join(answer))]
                self.pending = []
            steps.close()  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Forget everything that was said; the system prompt stays."""
        self.turns, self.pending, self.last = [], [], None
