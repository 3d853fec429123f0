"""Reading measured figures out of JSON: what is missing is None, what is malformed is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from gemma_surgery.checkpoint.json_types import Json, JsonProblem, decode_object, read_small_file
from gemma_surgery.checkpoint.wording import brief, literal
from gemma_surgery.errors import SurgeryError

WHERE = "report"
MAX_BYTES = 64 << 20

Object = Mapping[str, Json]


class Fields:
    """An object of a file and where it stands, for messages.

    Args:
        values: the parsed object.
        place: file and path of keys.
    """

    def __init__(self, values: Object, place: str) -> None:
        self.values = values
        self.place = place

    def number(self, key: str) -> float | None:
        """A finite number; None if it is missing or null, which is what unmeasured figures are."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse("a number", value, key)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._refuse("a finite number", value, key)
        return number

    def needed(self, key: str) -> float:
        """A number that must be there."""
        value = self.number(key)
        if value is None:
            self._refuse("a number", None, key)
        return value

    def integer(self, key: str) -> int | None:
        """A whole number, or None."""
        value = self.number(key)
        if value is not None and value != int(value):
            self._refuse("a whole number", self.values[key], key)
        return None if value is None else int(value)

    def text(self, key: str) -> str | None:
        """A text, or None."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self._refuse("a text", value, key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty if it is missing."""
        found = self._list(key)
        for value in found:
            if not isinstance(value, str):
                self._refuse("a list of texts", value, key)
        return tuple(str(value) for value in found)

    def part(self, key: str) -> Fields | None:
        """An object inside, or None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._refuse("an object", value, key)
        return Fields(value, f"{self.place}, `{key}`")

    def parts(self, key: str) -> list[Fields]:
        """A list of objects, empty if it is missing."""
        found: list[Fields] = []
        for index, value in enumerate(self._list(key)):
            if not isinstance(value, dict):
                self._refuse("a list of objects", value, key)
            found.append(Fields(value, f"{self.place}, `{key}`[{index}]"))
        return found

    def flag(self, key: str) -> bool:
        """Whether a key is true."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self._refuse("true or false", value, key)
        return value is True

    def _list(self, key: str) -> list[Json]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self._refuse("a list", value, key)
        return value

    def _refuse(self, needed: str, value: Json, key: str) -> NoReturn:
        raise SurgeryError(WHERE, f"need {needed} under {literal(key)}, got {brief(value)} in {self.place}")


def read_documents(path: Path) -> list[Fields]:
    """The JSON objects of a file: one in all, or one a line; other lines are skipped as a command's talk.

    Raises:
        SurgeryError: the file cannot be read, or holds no object.
    """
    data = read_small_file(path, MAX_BYTES, WHERE)
    place = literal(path.name)
    try:
        return [Fields(decode_object(data), place)]
    except JsonProblem as problem:
        reason = str(problem)
    found: list[Fields] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            if line.lstrip().startswith(b"{"):
                found.append(Fields(decode_object(line), f"{place} line {number}"))
        except JsonProblem as problem:
            raise SurgeryError(WHERE, f"line {number} of {place} {problem}") from None
    if not found:
        raise SurgeryError(
            WHERE, f"{place} {reason}", "keep what a command with `--json` writes to stdout in a file"
        )
    return found
