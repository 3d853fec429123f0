"""What a tokenizer.json says beside its vocabulary and merges: model options, added tokens, space mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.tokenizer_json import json_list, json_object, json_type, quoted

# Twice the largest vocabulary in use: a wild id must not allocate gigabytes.
MAX_IDS = 1 << 21

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens`: matched in the raw text before any merge."""

    token_id: int
    content: str
    special: bool


def id_limit(rows: int | None) -> int:
    """Return the lowest id that is too high for an embedding of `rows` rows, None for any."""
    return MAX_IDS if rows is None else min(rows, MAX_IDS)


def check_model(skeleton: dict[str, object], where: str) -> dict[str, object]:
    """Return the `model` of a skeleton.

    Raises:
        SurgeryError: it is not BPE over characters with merges as they stand.
    """
    model = json_object(skeleton.get("model"), where, "`model`")
    # Files from before 2020 leave the type out; those with merges are BPE.
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        found = f"`{kind}`" if isinstance(kind, str) else json_type(kind)
        raise SurgeryError("tokenizer", f"need a `BPE` model, got {found} in `{where}`")
    if model.get("continuing_subword_prefix"):
        prefix = model["continuing_subword_prefix"]
        raise SurgeryError(
            "tokenizer", f"need merges without a continuing subword prefix, got `{prefix}` in `{where}`"
        )
    parts = (skeleton.get(key) for key in ("normalizer", "pre_tokenizer", "decoder"))
    if any(part.get("type") == "ByteLevel" for value in parts for part in _components(value)):
        raise SurgeryError(
            "tokenizer",
            f"need tokens spelled in characters with byte fallback, got a `ByteLevel` tokenizer in `{where}`",
        )
    return model


def added_tokens(
    skeleton: dict[str, object], find: Callable[[str], int | None], where: str
) -> tuple[AddedToken, ...]:
    """Return the entries of `added_tokens`, in order.

    Args:
        skeleton: the document.
        find: gives the id that the vocabulary has for a token.
        where: the file's name, for messages.

    Raises:
        SurgeryError: an entry is malformed, repeats another or contradicts the vocabulary.
    """
    added: list[AddedToken] = []
    contents: set[str] = set()
    for index, entry in enumerate(json_list(skeleton.get("added_tokens", []), where, "`added_tokens`")):
        what = f"`added_tokens[{index}]`"
        item = json_object(entry, where, what)
        token_id, content, special = item.get("id"), item.get("content"), item.get("special", False)
        if type(token_id) is not int or not isinstance(content, str) or not isinstance(special, bool):
            raise SurgeryError(
                "tokenizer",
                f"need an integer `id`, a string `content` and a boolean `special` in {what},"
                f" got {json_type(token_id)}, {json_type(content)} and {json_type(special)} in `{where}`",
            )
        known = find(content)
        if known is not None and known != token_id:
            raise SurgeryError(
                "tokenizer",
                f"need one id for added token {quoted(content)}, got {token_id} and {known} in `{where}`",
            )
        if content in contents:
            raise SurgeryError("tokenizer", f"added token {quoted(content)} is listed twice in `{where}`")
        contents.add(content)
        added.append(AddedToken(token_id, content, special))
    return tuple(added)


def out_of_range(token: str, token_id: int, rows: int | None, where: str) -> SurgeryError:
    """Return the error about an id that lies beyond the embedding, or beyond reason."""
    limit = id_limit(rows)
    room = f"the {limit} rows of the embedding" if rows is not None else f"0 to {limit - 1}"
    return SurgeryError(
        "tokenizer", f"need ids within {room}, got {token_id} for token {quoted(token)} in `{where}`"
    )


def taken_twice(first: str, second: str, token_id: int, where: str) -> SurgeryError:
    """Return the error about two tokens with one id."""
    return SurgeryError(
        "tokenizer",
        f"need one token per id, got {quoted(first)} and {quoted(second)} for id {token_id} in `{where}`",
    )


def space_mark(skeleton: dict[str, object]) -> str:
    """Return the character that stands for a space in surface forms."""
    for part in chain(_components(skeleton.get("normalizer")), _components(skeleton.get("pre_tokenizer"))):
        content = part.get("content") if part.get("pattern") == {"String": " "} else None
        mark = part.get("replacement") if part.get("type") == "Metaspace" else content
        if isinstance(mark, str) and len(mark) == 1:
            return mark
    return " "


def _components(value: object) -> Iterator[dict[str, object]]:
    """Yield a normalizer, pre-tokenizer or decoder and the members of a `Sequence`."""
    if isinstance(value, dict):
        yield value
        for key in ("normalizers", "pretokenizers", "decoders"):
            members = value.get(key)
            for member in members if isinstance(members, list) else []:
                yield from _components(member)
