"""Conversations as JSON: the message format that chat templates and other tools take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gemma_surgery.checkpoint.json_types import load_json_object
from gemma_surgery.checkpoint.whole_file import write_whole
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.conversation import Part, Turn, check_conversation
from gemma_surgery.session.chat import Picture, Said

if TYPE_CHECKING:
    from gemma_surgery.generation.conversation import Message

MESSAGES = "messages"


def save_transcript(path: Path, system: str | None, turns: list[Said]) -> None:
    """Write a conversation as `{"messages": [...]}`, images by their paths.

    Args:
        path: a new file, or one with an earlier conversation, which is replaced.
        system: the system prompt.
        turns: what was said.

    Raises:
        SurgeryError: nothing was said, or the file holds something else or cannot be written.
    """
    if not turns:
        _refuse("need a conversation to save, got nothing said yet")
    path = path.expanduser()
    if path.exists() and not _is_transcript(path):
        _refuse(f"need a new file or an earlier conversation to replace, got something else in `{path}`")
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    messages += [_as_json(said) for said in turns]
    write_whole(path, json.dumps({MESSAGES: messages}, ensure_ascii=False, indent=1) + "\n", "chat")


def load_transcript(path: Path) -> tuple[str | None, list[Said]]:
    """Read a conversation; images are read from their paths, which are relative to the file.

    Returns:
        The system prompt, and the turns.

    Raises:
        SurgeryError: no such file, no conversation, turns that do not alternate, or an unusable image.
    """
    path = path.expanduser()
    messages = load_json_object(path, "chat").get(MESSAGES)
    if not isinstance(messages, list):
        _refuse(f"need a list under `{MESSAGES}`, got none in `{path}`", "give a file that `/save` wrote")
    turns = check_conversation(cast("list[Message]", messages))
    system = turns.pop(0).text() if turns[0].role == "system" else None
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    if len(turns) % 2 or [turn.role for turn in turns] != expected[: len(turns)]:
        _refuse(f"need messages of user and assistant in turn, the assistant's last, got others in `{path}`")
    return system, [_said(turn, path.parent) for turn in turns]


def _said(turn: Turn, folder: Path) -> Said:
    pictures = tuple(_picture(part, folder) for part in turn.parts if part.text is None)
    return Said(turn.role, turn.text(), pictures)


def _picture(part: Part, folder: Path) -> Picture:
    if not isinstance(part.image, str):
        _refuse("need the path of every image in a saved conversation, got an image without one")
    path = Path(part.image).expanduser()
    return Picture.open(path if path.is_absolute() else folder / path)


def _as_json(said: Said) -> dict[str, Any]:
    if not said.pictures:
        return {"role": said.role, "content": said.text}
    parts = [{"type": "image", "path": str(picture.path)} for picture in said.pictures]
    return {"role": said.role, "content": [*parts, {"type": "text", "text": said.text}]}


def _is_transcript(path: Path) -> bool:
    try:
        return isinstance(load_json_object(path, "chat").get(MESSAGES), list)
    except SurgeryError:
        return False


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("chat", message, hint) from None
