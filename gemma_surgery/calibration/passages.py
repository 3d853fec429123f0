"""Passages: the texts and images that a model is calibrated and measured on, built in or from files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemma_surgery.checkpoint.json_types import (
    Json,
    JsonProblem,
    decode_object,
    os_reason,
    read_small_file,
)
from gemma_surgery.checkpoint.wording import brief, literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.image_file import MAX_FILE_BYTES
from gemma_surgery.surgery.corpus import text_lines

WHERE = "calibration"
PIECE_CHARACTERS = 2000
# Of every five built-in passages this one is never calibrated on.
HELD_OUT = 4
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_PROMPT = "Describe this image in detail."
ANSWER_KEYS = ("text", "completion", "answer", "response")
# `model` is what Gemma's own templates call the assistant.
ASSISTANT_ROLES = ("assistant", "model")

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)")


@dataclass(frozen=True)
class Passage:
    """One exchange with a model, or a piece of raw text.

    Attributes:
        kind: a word to count by, e.g. `prose` or `code`.
        prompt: the user's turn; empty for raw text.
        text: the model's turn, or the raw text; empty where only the prompt is used.
        image: shown before the prompt.
    """

    kind: str
    prompt: str
    text: str
    image: Path | None = None


@cache
def built_in_passages() -> tuple[Passage, ...]:
    """Return the passages that ship with the package, kinds interleaved, the same on every machine."""
    return read_passages(Path(__file__).with_name("passages.jsonl"))


def calibration_passages() -> tuple[Passage, ...]:
    """Return the built-in passages that profiles are made on, four of five."""
    return tuple(p for index, p in enumerate(built_in_passages()) if index % 5 != HELD_OUT)


def held_out_passages() -> tuple[Passage, ...]:
    """Return the built-in passages that quality is measured on, the others."""
    return built_in_passages()[HELD_OUT::5]


def read_passages(path: Path) -> tuple[Passage, ...]:
    """Read passages from a file or a folder of images.

    Args:
        path: one of

            - `.txt`: raw text, cut into pieces of at most `PIECE_CHARACTERS` that end where a paragraph ends,
              or else a line, a sentence or a word;
            - `.jsonl`, `.ndjson`: a JSON object per line: `text`; or `prompt` with `text`, `completion`,
              `answer` or `response`; or `messages`, whose last model turn is the text and whose last user
              turn before that is the prompt, with the system turn in front of it. `image` names a file
              relative to the folder of `path`, `kind` is a word to count by; other keys are ignored;
            - a folder: each PNG, JPEG and WebP image directly in it, in natural order, with the prompt
              `IMAGE_PROMPT` and no text.

    Returns:
        At least one passage, in file order.

    Raises:
        SurgeryError: nothing to read, another suffix, not UTF-8, or a line of another form; file and line
            are named.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        found = tuple(Passage("image", IMAGE_PROMPT, "", file) for file in _images(path))
        missing = f"an image ({', '.join(IMAGE_SUFFIXES)})"
    elif suffix == ".txt":
        found = tuple(Passage("text", "", piece) for piece in _pieces(_lines(path)))
        missing = "text"
    elif suffix in (".jsonl", ".ndjson"):
        found = tuple(_record(line, path, number) for number, line in _lines(path) if line.strip())
        missing = "a JSON object per line"
    elif not path.exists():
        raise SurgeryError(WHERE, f"need a file or a folder of images, got nothing at {literal(str(path))}")
    else:
        raise SurgeryError(
            WHERE,
            f"need `.txt`, `.jsonl`, `.ndjson` or a folder of images, got {literal(str(path))}",
            "give the folder that the image is in" if suffix in IMAGE_SUFFIXES else None,
        )
    if not found:
        raise SurgeryError(WHERE, f"need {missing}, got nothing in {literal(str(path))}")
    return found


def passages_sha256(passages: Iterable[Passage]) -> str:
    """Return the identity of the data: order, words and the bytes of images, but not where images lie.

    Raises:
        SurgeryError: an image cannot be read.
    """
    digest = hashlib.sha256()
    for passage in passages:
        image = None
        if passage.image is not None:
            image = hashlib.sha256(read_small_file(passage.image, MAX_FILE_BYTES, WHERE)).hexdigest()
        line = json.dumps([passage.kind, passage.prompt, passage.text, image])
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in text_lines(path, WHERE):
        yield number, (line.removeprefix("\ufeff") if number == 1 else line).replace("\r\n", "\n")


def _pieces(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    pending = ""
    for _, line in lines:
        pending += line
        start = 0
        while len(pending) - start > PIECE_CHARACTERS:
            end = start + _cut(pending[start : start + PIECE_CHARACTERS])
            if piece := pending[start:end].strip():
                yield piece
            start = end
        pending = pending[start:]
    if piece := pending.strip():
        yield piece


def _cut(text: str) -> int:
    """Where a piece ends: at the last paragraph end in the second half of `text`, or the next best."""
    half = len(text) // 2
    sentence = max((match.end() for match in _SENTENCE_END.finditer(text, half)), default=-1)
    ends = (text.rfind("\n\n", half), text.rfind("\n", half), sentence, text.rfind(" ", half))
    return next((end for end in ends if end > 0), len(text))


def _images(folder: Path) -> list[Path]:
    try:
        files = [
            entry
            for entry in folder.iterdir()
            # macOS writes `._name.jpg` beside files on foreign disks: no images.
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        ]
    except OSError as error:
        raise SurgeryError(WHERE, f"cannot read `{folder}`: {os_reason(error)}") from None
    return sorted(files, key=lambda file: _natural(file.name))


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """A key that sorts `2.png` before `10.png` and numbers before words, and no two names as equal."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts], name


def _record(line: str, path: Path, number: int) -> Passage:
    place = f"{literal(str(path))} line {number}"
    try:
        record = decode_object(line.encode())
    except JsonProblem as problem:
        raise SurgeryError(WHERE, f"{place} {problem}") from None
    image = _image(record, path, place)
    prompt, text = _turns(record, place)
    if not text.strip() and not prompt.strip():
        raise SurgeryError(WHERE, f"need a prompt or a text, got neither in {place}")
    kind = _string(record, "kind", place) if "kind" in record else ""
    return Passage(kind or ("image" if image else "chat" if prompt else "text"), prompt, text, image)


def _turns(record: dict[str, Json], place: str) -> tuple[str, str]:
    answers = [key for key in ANSWER_KEYS if key in record]
    if "messages" in record:
        if answers or "prompt" in record:
            raise SurgeryError(WHERE, f"need either `messages` or prompt and text, got both in {place}")
        return _conversation(record["messages"], place)
    if len(answers) != 1:
        keys = ", ".join(f"`{key}`" for key in ANSWER_KEYS)
        got = " and ".join(f"`{key}`" for key in answers) or "none"
        raise SurgeryError(WHERE, f"need one of {keys} or `messages`, got {got} in {place}")
    if "prompt" not in record and answers != ["text"]:
        raise SurgeryError(WHERE, f"need a `prompt` with `{answers[0]}`, got none in {place}")
    prompt = _string(record, "prompt", place) if "prompt" in record else ""
    return prompt, _string(record, answers[0], place)


def _conversation(messages: Json, place: str) -> tuple[str, str]:
    if not isinstance(messages, list):
        raise SurgeryError(WHERE, f"need an array `messages`, got {brief(messages)} in {place}")
    system = user = ""
    last: tuple[str, str] | None = None
    for message in messages:
        if not isinstance(message, dict):
            raise SurgeryError(WHERE, f"need messages that are objects, got {brief(message)} in {place}")
        role = _string(message, "role", place)
        content = _content(message, place)
        if role == "system":
            # Gemma's templates know no system turn: its words stand before the user's.
            system = content
        elif role == "user":
            user = content
        elif role in ASSISTANT_ROLES:
            last = (f"{system}\n\n{user}" if system else user), content
        else:
            raise SurgeryError(
                WHERE, f"need the role `system`, `user` or `assistant`, got {literal(role)} in {place}"
            )
    if last is None:
        raise SurgeryError(WHERE, f"need a message of the role `assistant`, got none in {place}")
    return last


def _content(message: dict[str, Json], place: str) -> str:
    """The text of a message: a string, or the text parts of a list."""
    content = message.get("content")
    if not isinstance(content, list):
        return _string(message, "content", place)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise SurgeryError(
                WHERE,
                f"need `content` of text, got {brief(part)} in {place}",
                "name the image under `image` of the line",
            )
        texts.append(_string(part, "text", place))
    return "".join(texts)


def _image(record: dict[str, Json], path: Path, place: str) -> Path | None:
    if record.get("image") is None:
        return None
    image = path.parent / _string(record, "image", place)
    if not image.is_file():
        raise SurgeryError(WHERE, f"need an image file, got nothing at {literal(str(image))} in {place}")
    return image


def _string(record: dict[str, Json], key: str, place: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        got = brief(value) if key in record else "none"
        raise SurgeryError(WHERE, f"need a string `{key}`, got {got} in {place}")
    return value
