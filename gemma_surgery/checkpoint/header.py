"""Reading and writing safetensors headers, with every number checked before it is used.

A file is 8 bytes (little-endian length N), N bytes of JSON, then the tensors' bytes without gaps. Nothing
that a header says is believed: every accepted tensor lies inside the file and exactly fills its range.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, NoReturn

import orjson

from gemma_surgery.checkpoint.dtypes import ITEM_BYTES
from gemma_surgery.checkpoint.json_types import Json, JsonProblem, decode_object, os_reason
from gemma_surgery.checkpoint.wording import brief, human_bytes, literal
from gemma_surgery.errors import SurgeryError

MAX_HEADER_BYTES = 100_000_000
MAX_COUNT = 2**63 - 1
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


class TensorInfo(NamedTuple):
    """Where one tensor lies in a file: bytes `[start, end)`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A checked safetensors header.

    Attributes:
        tensors: name -> place, in the order of their bytes.
        metadata: the file's `__metadata__`, empty if it has none.
        data_start: file offset of the first tensor byte.
        file_bytes: size of the file that the header was checked against.
        sha256: of the length field and the JSON, i.e. of the file's first `data_start` bytes.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int
    sha256: str


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file; reads no tensor.

    Raises:
        SurgeryError: the file cannot be read, or `parse_header` refuses it.
    """
    name = literal(path.name)[1:-1]
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                _refuse(f"need a regular file, got something else at `{name}`")
            prefix = file.read(_LENGTH_BYTES)
            # Refused before the JSON is read, so a wild length never becomes an allocation.
            json_bytes = _json_bytes(prefix, status.st_size, name)
            return parse_header(prefix + file.read(json_bytes), status.st_size, name)
    except OSError as error:
        _refuse(f"cannot read `{path}`: {os_reason(error)}")


def parse_header(prefix: bytes, file_bytes: int, where: str) -> Header:
    """Check a safetensors header.

    Args:
        prefix: the file's first bytes: the 8-byte length and at least the JSON that it announces.
        file_bytes: size of the whole file.
        where: file name for messages.

    Raises:
        SurgeryError: one line that names the file, the tensor, what was needed and what was found.
    """
    json_bytes = _json_bytes(prefix, file_bytes, where)
    data_start = _LENGTH_BYTES + json_bytes
    if len(prefix) < data_start:
        _refuse(f"need a header of {json_bytes:,} bytes, got {len(prefix) - _LENGTH_BYTES:,} in `{where}`")
    try:
        entries = decode_object(prefix[_LENGTH_BYTES:data_start])
    except JsonProblem as problem:
        _refuse(f"header of `{where}` {problem}")
    metadata = _metadata(entries.pop(_METADATA), where) if _METADATA in entries else {}
    data_bytes = file_bytes - data_start
    tensors = [_tensor(name, entry, data_start, data_bytes, where) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: tensor[3:])
    _check_contiguous(tensors, data_start, file_bytes, where)
    return Header(
        tensors={tensor.name: tensor for tensor in tensors},
        metadata=metadata,
        data_start=data_start,
        file_bytes=file_bytes,
        sha256=hashlib.sha256(prefix[:data_start]).hexdigest(),
    )


def encode_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    align: int = 64,
) -> tuple[bytes, list[int]]:
    """Lay tensors out one after the other and write the header for them.

    Args:
        tensors: (name, dtype, shape) in the order in which their bytes will lie.
        metadata: strings for `__metadata__`, written in sorted order; left out when empty.
        align: the data start is a multiple of this many bytes; itself a multiple of 8. 64 keeps vector loads
            from a mapped file aligned, 4096 puts the first tensor on a page.

    Returns:
        The header (length, JSON, padding spaces) and the absolute start of each tensor. The file ends where
        the last tensor ends. Same arguments, same bytes.

    Raises:
        SurgeryError: a name twice, a reserved name, an unknown dtype, a negative dimension, or over 100 MB.
    """
    if align < 8 or align % 8:
        _refuse(f"need a header alignment that is a multiple of 8, got {align}")
    described: dict[str, dict[str, object]] = {}
    if metadata:
        described[_METADATA] = {key: metadata[key] for key in sorted(metadata)}
    ends: list[int] = []
    offset = 0
    for name, dtype, shape in tensors:
        if name in described or name == _METADATA:
            reason = "is reserved" if name == _METADATA else "comes twice"
            _refuse(f"need distinct tensor names to write, but {literal(name)} {reason}")
        if dtype not in ITEM_BYTES:
            _refuse(f"need a known dtype to write, got {literal(dtype)} for tensor {literal(name)}")
        if any(size < 0 for size in shape):
            _refuse(f"need dimensions of 0 or more to write, got {list(shape)} for tensor {literal(name)}")
        end = offset + prod(shape) * ITEM_BYTES[dtype]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
        ends.append(end)
    if offset > MAX_COUNT:
        _refuse(f"need a file below 2**63 bytes, got {offset:,} bytes of tensors")
    try:
        text = orjson.dumps(described)
    except orjson.JSONEncodeError as error:
        _refuse(f"need UTF-8 names and metadata to write: {error}")
    text += b" " * (-(_LENGTH_BYTES + len(text)) % align)
    if len(text) > MAX_HEADER_BYTES:
        _refuse(f"need a header of at most {MAX_HEADER_BYTES:,} bytes, got {len(text):,} to write")
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, [len(header) + start for start in [0, *ends][: len(ends)]]


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("checkpoint", message, hint) from None


def _json_bytes(prefix: bytes, file_bytes: int, where: str) -> int:
    """Return the JSON's length, known to fit in the file."""
    if file_bytes == 0:
        _refuse(f"need a safetensors file, got an empty one: `{where}`")
    if file_bytes < _LENGTH_BYTES or len(prefix) < _LENGTH_BYTES:
        got_bytes = min(file_bytes, len(prefix))
        _refuse(f"need at least 8 bytes for the header length, got {got_bytes} in `{where}`")
    if prefix.startswith(b"version "):
        _refuse(
            f"need a safetensors file, got a Git LFS pointer in `{where}`",
            "fetch the real file, e.g. with `git lfs pull`",
        )
    json_bytes = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if json_bytes > MAX_HEADER_BYTES:
        _refuse(f"need a header of at most {MAX_HEADER_BYTES:,} bytes, got {json_bytes:,} in `{where}`")
    if json_bytes > file_bytes - _LENGTH_BYTES:
        _refuse(
            f"need a header of {json_bytes:,} bytes, but `{where}` ends after {file_bytes - _LENGTH_BYTES:,}"
            " of them"
        )
    if json_bytes == 0:
        _refuse(f"need a header that starts with `{{`, got no header at all in `{where}`")
    if len(prefix) > _LENGTH_BYTES and prefix[_LENGTH_BYTES] != ord("{"):
        _refuse(f"need a header that starts with `{{`, got byte 0x{prefix[_LENGTH_BYTES]:02x} in `{where}`")
    return json_bytes


def _metadata(value: Json, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(f"need `__metadata__` to be an object of strings, got {brief(value)} in `{where}`")
    metadata: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            _refuse(f"need strings in `__metadata__`, got {brief(text)} at key {literal(key)} in `{where}`")
        metadata[key] = text
    return metadata


def _tensor(name: str, entry: Json, data_start: int, data_bytes: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict):
        _refuse(f"need an object for tensor {literal(name)}, got {brief(entry)} in `{where}`")
    if entry.keys() != _FIELDS:
        _refuse_fields(name, entry, where)
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(f"need a known dtype, got {brief(dtype)} for tensor {literal(name)} in `{where}`")
    shape = _counts(entry["shape"], "shape", name, where)
    offsets = _counts(entry["data_offsets"], "data_offsets", name, where)
    if len(offsets) != 2:
        _refuse(f"need 2 data_offsets, got {len(offsets):,} for tensor {literal(name)} in `{where}`")
    begin, end = offsets
    if begin > end:
        _refuse(f"need data_offsets in order, got [{begin}, {end}] for tensor {literal(name)} in `{where}`")
    if end > data_bytes:
        _refuse(
            f"tensor {literal(name)} runs past the end of `{where}`: need {end:,} bytes of data,"
            f" got {data_bytes:,}"
        )
    need_bytes = ITEM_BYTES[dtype]
    for size in shape:
        need_bytes *= size
        if need_bytes > MAX_COUNT:
            _refuse(f"shape of tensor {literal(name)} overflows: need below 2**63 bytes in `{where}`")
    if need_bytes != end - begin:
        _refuse(
            f"tensor {literal(name)} of dtype {dtype} and shape {_shown(shape)} needs {need_bytes:,} bytes,"
            f" got a range of {end - begin:,} in `{where}`"
        )
    return TensorInfo(name, dtype, shape, data_start + begin, data_start + end)


def _counts(value: Json, field: str, name: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        _refuse(f"need an array as {field}, got {brief(value)} for tensor {literal(name)} in `{where}`")
    counts: list[int] = []
    for item in value:
        # `True` is an int to isinstance, and no count.
        if type(item) is not int or not 0 <= item <= MAX_COUNT:
            _refuse(
                f"need whole numbers from 0 to 2**63-1 in {field}, got {brief(item)}"
                f" for tensor {literal(name)} in `{where}`"
            )
        counts.append(item)
    return tuple(counts)


def _refuse_fields(name: str, entry: dict[str, Json], where: str) -> NoReturn:
    missing = sorted(_FIELDS - entry.keys())
    if missing:
        _refuse(f"tensor {literal(name)} has no `{missing[0]}` in `{where}`")
    extra = sorted(entry.keys() - _FIELDS)
    _refuse(f"tensor {literal(name)} has an unknown field {literal(extra[0])} in `{where}`")


def _check_contiguous(tensors: list[TensorInfo], data_start: int, file_bytes: int, where: str) -> None:
    """Refuse overlaps, gaps and trailing bytes; `tensors` are sorted by place."""
    expected, before = data_start, ""
    for tensor in tensors:
        if tensor.start != expected:
            shift = tensor.start - expected
            if shift < 0:
                _refuse(
                    f"tensor {literal(tensor.name)} overlaps tensor {literal(before)} by {-shift:,} bytes"
                    f" in `{where}`"
                )
            _refuse(f"gap of {shift:,} bytes before tensor {literal(tensor.name)} in `{where}`")
        expected, before = tensor.end, tensor.name
    if expected != file_bytes:
        extra = human_bytes(file_bytes - expected)
        _refuse(f"need the tensors to reach the end of `{where}`, got {extra} after the last one")


def _shown(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"of {len(shape):,} dimensions"
