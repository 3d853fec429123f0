"""A conversation as the user gives it, checked and brought into one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.image_file import ImageSource

# {"role": "user", "content": "text"} or content as a list of {"type": "text", "text": ...} and
# {"type": "image", "image": ...}; an image part without an image takes the next of those given beside.
Message: TypeAlias = Mapping[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "model": "assistant"}
IMAGE_KEYS = ("image", "path")
PLACEHOLDER = "<start_of_image>"


@dataclass(frozen=True, eq=False)
class Part:
    """Text, or the place of an image.

    Attributes:
        text: the text; None for an image.
        image: the image, None if it is given beside the conversation.
    """

    text: str | None = None
    image: ImageSource | None = None

    def as_content(self) -> dict[str, str]:
        """Return what a template sees: plain strings, never the image itself."""
        return {"type": "image"} if self.text is None else {"type": "text", "text": self.text}

    def placeholder(self) -> str:
        """Return the part as Gemma's own turn format writes it."""
        return PLACEHOLDER if self.text is None else self.text.strip()


@dataclass(frozen=True, eq=False)
class Turn:
    """What one side says: `role` is `system`, `user` or `assistant`."""

    role: str
    parts: tuple[Part, ...]

    def text(self) -> str:
        """All text of the turn."""
        return "".join(part.text or "" for part in self.parts)

    def as_message(self) -> dict[str, Any]:
        """Return the turn as templates expect it: a string where there is only one text."""
        if len(self.parts) == 1 and self.parts[0].text is not None:
            return {"role": self.role, "content": self.parts[0].text}
        return {"role": self.role, "content": [part.as_content() for part in self.parts]}


def check_conversation(content: str | Sequence[Message], system: str | None = None) -> list[Turn]:
    """Bring what the user says into one shape.

    Args:
        content: the text of one user turn, or messages.
        system: a system prompt to put in front.

    Raises:
        SurgeryError: nothing is said, a role or part is unknown, or a system prompt is not where it can be.
    """
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else list(content)
    if not messages:
        _refuse("need at least one message, got none")
    turns = [_turn(message, number) for number, message in enumerate(messages, start=1)]
    if system is not None:
        turns.insert(0, Turn("system", (Part(text=system),)))
    for number, turn in enumerate(turns, start=1):
        if turn.role != "system":
            continue
        if number > 1:
            _refuse(f"need the system prompt first and once, got one in message {number}")
        if any(part.text is None for part in turn.parts):
            _refuse("need text as the system prompt, got an image", "put the image into a user message")
        # Templates read only the first part of a system prompt.
        turns[0] = Turn("system", (Part(text=turn.text()),))
    if all(turn.role == "system" for turn in turns):
        _refuse("need a user message, got a system prompt alone")
    return turns


def place_images(turns: list[Turn], count: int) -> list[Turn]:
    """Put places for images in front of the last user turn.

    Args:
        turns: a conversation.
        count: how many.
    """
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        _refuse("need a user message for the images, got none")
    placed = list(turns)
    placed[last] = replace(turns[last], parts=(*(Part() for _ in range(count)), *turns[last].parts))
    return placed


def _turn(message: Message, number: int) -> Turn:
    if not isinstance(message, Mapping):
        _refuse(f"need an object with `role` and `content`, got {_kind(message)} as message {number}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(f"`{name}`" for name in ROLES)
        shown = literal(role) if isinstance(role, str) else _kind(role)
        _refuse(f"need one of the roles {known}, got {shown} in message {number}")
    content = message.get("content")
    if isinstance(content, str):
        return Turn(ROLES[role], (Part(text=content),))
    if not isinstance(content, (list, tuple)):
        _refuse(f"need text or a list of parts as `content`, got {_kind(content)} in message {number}")
    return Turn(ROLES[role], tuple(_part(item, number) for item in content))


def _part(item: Any, number: int) -> Part:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        if not isinstance(item.get("text"), str):
            _refuse(f"need a string as `text`, got {_kind(item.get('text'))} in message {number}")
        return Part(text=item["text"])
    if kind != "image":
        shown = literal(str(kind)) if kind is not None else _kind(item)
        _refuse(f"need parts of type `text` or `image`, got {shown} in message {number}")
    images = [item[key] for key in IMAGE_KEYS if item.get(key) is not None]
    if len(images) > 1 or "url" in item:
        _refuse(f"need one local image as `image` or `path`, got something else in message {number}")
    return Part(image=images[0] if images else None)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a `{type(value).__name__}`"


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("prompt", message, hint) from None
