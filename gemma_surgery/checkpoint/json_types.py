"""JSON as a type, and reading it strictly: one object, UTF-8, no key twice."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import TypeAlias

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_JSON_BYTES = 512 * 1024 * 1024
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonProblem(ValueError):
    """Why some bytes are not one strict JSON object; the caller adds the file's name."""


class _RepeatedKey(JsonProblem):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def decode_object(data: bytes) -> dict[str, Json]:
    """Parse one JSON object without knowing where it came from.

    Args:
        data: UTF-8 bytes; white space around the object is allowed, anything else is not.

    Returns:
        The object, keys in file order.

    Raises:
        JsonProblem: with the reason as a phrase that follows a file name.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonProblem(f"is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}") from None
    # A "-0" would become the integer 0, and pass where only counts are allowed.
    parse_int = _int_without_negative_zero if "-0" in text else None
    try:
        value: Json = json.loads(
            text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant, parse_int=parse_int
        )
        if _SURROGATE_ESCAPE.search(data):
            _refuse_lone_surrogates(value)
    except _RepeatedKey as error:
        raise JsonProblem(f"has the key {literal(error.key)} twice in one object") from None
    except JsonProblem:
        raise
    except json.JSONDecodeError as error:
        reason = (error.msg[:1].lower() + error.msg[1:]).removesuffix(" at")
        raise JsonProblem(f"is not valid JSON: {reason} at character {error.pos:,}") from None
    except RecursionError:
        raise JsonProblem("is not usable JSON: nested too deeply") from None
    except ValueError:
        raise JsonProblem("is not usable JSON: a number has too many digits") from None
    if not isinstance(value, dict):
        raise JsonProblem(f"needs a JSON object at the top, got {_kind(value)}")
    return value


def parse_json_object(data: bytes, file: str, where: str = "checkpoint") -> dict[str, Json]:
    """Parse one strict JSON object, naming `file` in the error.

    Raises:
        SurgeryError: not UTF-8, not JSON, a key twice, nested too deeply, or not an object.
    """
    try:
        return decode_object(data)
    except JsonProblem as problem:
        raise SurgeryError(where, f"`{file}` {problem}") from None


def load_json_object(path: Path, where: str = "checkpoint") -> dict[str, Json]:
    """Read a JSON file that holds one object.

    Raises:
        SurgeryError: the file is missing, unreadable, over 512 MiB, or not one strict JSON object.
    """
    return parse_json_object(read_small_file(path, MAX_JSON_BYTES, where), path.name, where)


def read_small_file(path: Path, max_bytes: int = MAX_JSON_BYTES, where: str = "checkpoint") -> bytes:
    """Read a whole regular file, refusing folders, devices, pipes and files over `max_bytes`.

    Raises:
        SurgeryError: with the reason in one line.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SurgeryError(where, f"need a regular file, got something else at `{path}`")
            if status.st_size > max_bytes:
                raise SurgeryError(
                    where, f"need at most {max_bytes:,} bytes, got {status.st_size:,} in `{path.name}`"
                )
            return file.read()
    except OSError as error:
        raise SurgeryError(where, f"cannot read `{path}`: {os_reason(error)}") from None


def os_reason(error: OSError) -> str:
    """Return the operating system's reason in lower case, e.g. `permission denied`."""
    if error.errno is None:
        return str(error) or type(error).__name__
    reason = os.strerror(error.errno)
    return reason if error.errno == errno.EIO else reason[:1].lower() + reason[1:]


def _unique_pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKey(key)
            seen.add(key)
    return result


def _refuse_constant(name: str) -> Json:
    raise JsonProblem(f"is not valid JSON: {name} is not a JSON number")


def _int_without_negative_zero(digits: str) -> int | float:
    value = int(digits)
    return -0.0 if value == 0 and digits[0] == "-" else value


def _refuse_lone_surrogates(value: Json) -> None:
    pending: list[Json] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise JsonProblem("is not valid JSON: a string holds half of a surrogate pair") from None


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "a number"
