"""The kept sets of a vocabulary surgery by name: which tokens each of them matches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import characters
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.tokenizer_json import json_type, quoted

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class KeepPass:
    """One pass of a selection.

    Attributes:
        name: the pass as the user named it.
        mask: bool [num_ids], the tokens that it matches.
    """

    name: str
    mask: Mask


@dataclass(frozen=True)
class KeepSet:
    """A kept set that needs nothing but the tokenizer."""

    name: str
    description: str
    match: Callable[[TokenizerFile], Mask]


def special(tokenizer: TokenizerFile) -> Mask:
    """Match the tokens marked special (control, turn and image tokens) and the byte tokens."""
    mask = np.zeros(tokenizer.num_ids, np.bool_)
    mask[tokenizer.special_ids] = True
    mask[tokenizer.byte_ids[tokenizer.byte_ids >= 0]] = True
    return mask


def ascii_printable(tokenizer: TokenizerFile) -> Mask:
    """Match as published: code points 32 to 126 only, no `<unusedN>`, all byte and special tokens.

    A space counts in whichever form the tokenizer stores it. Source: the Gemma-Prune paper, section 3.2.1.
    """
    mask: Mask = tokenizer.classes == characters.ASCII
    mask[tokenizer.unused_ids] = False
    mask |= special(tokenizer)
    return mask


def typographic(tokenizer: TokenizerFile) -> Mask:
    """Match runs of newlines, runs of tabs, and typographic signs alone or with ASCII."""
    classes = tokenizer.classes
    runs = (classes == characters.NEWLINE) | (classes == characters.TAB)
    mask: Mask = runs | _mixed(classes, characters.TYPOGRAPHIC, characters.ASCII)
    return mask


def latin(tokenizer: TokenizerFile) -> Mask:
    """Match Latin letters from U+00C0 to U+024F, alone or with ASCII."""
    return _mixed(tokenizer.classes, characters.LATIN, characters.ASCII)


def emoji(tokenizer: TokenizerFile) -> Mask:
    """Match pictographs, flags, skin tones and joiners, alone or with ASCII and typographic signs."""
    return _mixed(tokenizer.classes, characters.PICTOGRAPH, characters.ASCII | characters.TYPOGRAPHIC)


def everything(tokenizer: TokenizerFile) -> Mask:
    """Match every token but `<unusedN>`."""
    mask: Mask = tokenizer.exists.copy()
    mask[tokenizer.unused_ids] = False
    return mask


KEEP_SETS = {
    keep_set.name: keep_set
    for keep_set in (
        KeepSet("ascii", "printable ASCII with special and byte tokens, as published", ascii_printable),
        KeepSet(
            "typographic", "newline and tab runs, curly quotes, dashes, currency, math signs", typographic
        ),
        KeepSet("latin", "accented Latin letters up to U+024F", latin),
        KeepSet("emoji", "pictographs, flags, skin tones and their joiners", emoji),
        KeepSet("special", "special and byte tokens alone", special),
        KeepSet("all", "everything but the `<unusedN>` tokens", everything),
    )
}


def keep_pass(tokenizer: TokenizerFile, name: str) -> KeepPass:
    """Run the kept set of that name.

    Raises:
        SurgeryError: there is no such set.
    """
    if name not in KEEP_SETS:
        raise SurgeryError(
            "prune_vocabulary",
            f"need a known keep set, got `{name}`",
            f"choose from {', '.join(f'`{known}`' for known in KEEP_SETS)}, `corpus` and `file`",
        )
    return KeepPass(name, KEEP_SETS[name].match(tokenizer))


def from_ids(tokenizer: TokenizerFile, ids: Iterable[int]) -> Mask:
    """Return bool [num_ids], True for the given ids."""
    mask = np.zeros(tokenizer.num_ids, np.bool_)
    mask[list(ids)] = True
    return mask


def from_file(tokenizer: TokenizerFile, path: Path) -> Mask:
    """Match the tokens that a file lists.

    The file is a JSON list of tokens and ids, or text with one token per line; if every line is a decimal
    number, the lines are ids. Tokens are written as stored, or with plain spaces.

    Raises:
        SurgeryError: the file cannot be read, or names tokens that do not exist (all of them listed).
    """
    entries = _listed(path)
    ids = {token: token_id for token_id, token in enumerate(tokenizer.tokens) if token is not None}
    found: list[int] = []
    unknown: list[str | int] = []
    for entry in entries:
        if isinstance(entry, int):
            exists = 0 <= entry < tokenizer.num_ids and tokenizer.tokens[entry] is not None
            token_id = entry if exists else None
        else:
            token_id = ids.get(entry, ids.get(entry.replace(" ", tokenizer.space)))
        if token_id is None:
            unknown.append(entry)
        else:
            found.append(token_id)
    if unknown:
        names = ", ".join(quoted(entry) for entry in unknown[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise SurgeryError(
            "prune_vocabulary",
            f"need tokens of `{tokenizer.where}`, got {len(unknown)} unknown in `{path}`: {names}{more}",
            "write tokens as the tokenizer stores them, or their ids",
        )
    return from_ids(tokenizer, found)


def _listed(path: Path) -> list[str | int]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SurgeryError("prune_vocabulary", f"cannot read `{path}`: {error.strerror}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SurgeryError(
            "prune_vocabulary", f"need UTF-8, got other bytes in `{path}` line {line}"
        ) from None
    values = _json_list(data)
    if values is None:
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        lines = [line for line in lines if line]
        numbers = all(line.isascii() and line.isdigit() for line in lines)
        return [int(line) if numbers else line for line in lines]
    entries: list[str | int] = []
    for value in values:
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise SurgeryError(
                "prune_vocabulary", f"need tokens or ids in the list, got {json_type(value)} in `{path}`"
            )
        entries.append(value)
    return entries


def _json_list(data: bytes) -> list[object] | None:
    if not data.lstrip().startswith(b"["):
        return None
    try:
        value: object = orjson.loads(data)
    except orjson.JSONDecodeError:
        # A text list whose first token is a bracket.
        return None
    return value if isinstance(value, list) else None


def _mixed(classes: npt.NDArray[np.uint8], wanted: int, with_: int) -> Mask:
    """Match tokens with at least one character of a class and none outside it and its companions."""
    mask: Mask = ((classes & wanted) != 0) & ((classes & ~np.uint8(wanted | with_)) == 0)
    return mask
