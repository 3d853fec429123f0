"""Read a tokenizer.json in bounded memory: the vocabulary at once, the merges block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import orjson

from gemma_surgery.errors import SurgeryError

BLOCK_BYTES = 1 << 17

_VOCAB = re.compile(rb'"vocab"\s*:\s*\{')
_MERGES = re.compile(rb'\}\s*,\s*"merges"\s*:\s*\[')
_TAIL = re.compile(rb"\]\s*\}\s*\}\s*\Z")
_TAIL_BYTES = 256
_VOCAB_MARK = {"\x00vocab": 0}
_MERGES_MARK = ["\x00merges"]


@dataclass(frozen=True)
class TokenizerDocument:
    """A tokenizer.json taken apart.

    Attributes:
        skeleton: the whole document with `model.vocab` and `model.merges` emptied.
        vocab: `model.vocab`, still unchecked.
        merge_blocks: `model.merges` in order, as consecutive lists, still unchecked; read once.
    """

    skeleton: dict[str, object]
    vocab: object
    merge_blocks: Iterator[object]


def split_document(data: bytes) -> TokenizerDocument | None:
    """Take a tokenizer.json apart without building the tree of its merges.

    Args:
        data: the file's bytes.

    Returns:
        None if the keys do not come in the order that the `tokenizers` library writes. The merge blocks
        raise `orjson.JSONDecodeError` where the text is not what its seams promise; parse it whole then.
    """
    vocab = _VOCAB.search(data)
    merges = _MERGES.search(data, vocab.end()) if vocab else None
    tail = _TAIL.search(data, max(0, len(data) - _TAIL_BYTES))
    if vocab is None or merges is None or tail is None or tail.start() < merges.end():
        return None
    vocab_start, vocab_end = vocab.end() - 1, merges.start() + 1
    merges_start, merges_end = merges.end(), tail.start()
    text = b"".join(
        (
            data[:vocab_start],
            orjson.dumps(_VOCAB_MARK),
            data[vocab_end : merges_start - 1],
            orjson.dumps(_MERGES_MARK),
            data[merges_end + 1 :],
        )
    )
    try:
        skeleton: object = orjson.loads(text)
        parsed: object = orjson.loads(memoryview(data)[vocab_start:vocab_end])
    except orjson.JSONDecodeError:
        return None
    model = skeleton.get("model") if isinstance(skeleton, dict) else None
    if not isinstance(skeleton, dict) or not isinstance(model, dict):
        return None
    if model.get("vocab") != _VOCAB_MARK or model.get("merges") != _MERGES_MARK:
        return None
    bounds = _block_bounds(data, merges_start, merges_end)
    return TokenizerDocument(_emptied(skeleton, model), parsed, _blocks(data, bounds))


def parse_document(data: bytes, where: str) -> TokenizerDocument:
    """Parse a tokenizer.json as a whole, whatever its layout.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.

    Raises:
        SurgeryError: the bytes are not JSON, or not an object with an object `model`.
    """
    try:
        document: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = str(error).split(":", maxsplit=1)[0]
        raise SurgeryError(
            "tokenizer", f"need JSON, got `{reason}` at line {error.lineno} of `{where}`"
        ) from None
    skeleton = json_object(document, where, "the tokenizer")
    model = json_object(skeleton.get("model"), where, "`model`")
    merges = iter([model["merges"]] if "merges" in model else [])
    return TokenizerDocument(_emptied(skeleton, model), model.get("vocab"), merges)


def json_object(value: object, where: str, what: str) -> dict[str, object]:
    """Return `value` if it is a JSON object, else raise a `SurgeryError` that says what it is."""
    if not isinstance(value, dict):
        raise SurgeryError("tokenizer", f"need an object for {what}, got {json_type(value)} in `{where}`")
    return value


def json_list(value: object, where: str, what: str) -> list[object]:
    """Return `value` if it is a JSON array, else raise a `SurgeryError` that says what it is."""
    if not isinstance(value, list):
        raise SurgeryError("tokenizer", f"need a list for {what}, got {json_type(value)} in `{where}`")
    return value


def json_type(value: object) -> str:
    """Return the JSON name of a parsed value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def quoted(value: object) -> str:
    """Return a value as JSON in backticks, shortened, so that control characters stay visible."""
    text = orjson.dumps(value).decode()
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _block_bounds(data: bytes, start: int, end: int) -> list[int]:
    """Return offsets that cut the inside of the merges array right after commas between its elements."""
    pairs = data[start : start + 64].lstrip().startswith(b"[")
    # Raw newlines cannot occur inside a JSON string, so a separator with one is structure.
    seam = b"],\n" if pairs else b",\n"
    bounds = [start]
    while (found := data.find(seam, bounds[-1] + BLOCK_BYTES, end)) >= 0:
        bounds.append(found + len(seam) - 1)
    bounds.append(end)
    return bounds


def _blocks(data: bytes, bounds: list[int]) -> Iterator[object]:
    for start, end in pairwise(bounds):
        comma = int(end != bounds[-1])
        block: object = orjson.loads(b"[" + data[start : end - comma] + b"]")
        yield block


def _emptied(skeleton: dict[str, object], model: dict[str, object]) -> dict[str, object]:
    emptied = {key: None if key in ("vocab", "merges") else value for key, value in model.items()}
    return {**skeleton, "model": emptied}
