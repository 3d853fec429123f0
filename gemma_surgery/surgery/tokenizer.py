"""A Hugging Face tokenizer.json with a BPE model, as flat tables that surgery can cut."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import characters
from gemma_surgery.surgery.tokenizer_json import json_object
from gemma_surgery.surgery.tokenizer_reference import reference_tables
from gemma_surgery.surgery.tokenizer_scan import TokenizerTables, scan_tables
from gemma_surgery.surgery.tokenizer_skeleton import AddedToken, Ids, space_mark

NUM_BYTES = 256

Mask = npt.NDArray[np.bool_]

_UNUSED_PREFIX = "<unused"
_UNUSED = re.compile(r"<unused\d+>")


class _Hash(Protocol):
    def copy(self) -> _Hash: ...
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, eq=False)
class TokenizerFile:
    """The tables of a tokenizer.json.

    Attributes:
        where: the file's name, for messages.
        table: every token, by id and by text.
        added: the entries of `added_tokens`, in file order.
        vocab_ids: int32 [V], the ids of `model.vocab` in file order.
        merges: int32 [M, 3], left, right and resulting id of every merge, in rank order.
        byte_fallback: True if characters without a token are spelled in bytes.
        byte_ids: int32 [256], the ids of `<0x00>` to `<0xFF>`; -1 where there is none.
        special_ids: int32, ids of the added tokens marked special, ascending.
        unused_ids: int32, ids of the `<unusedN>` tokens, ascending.
        space: how a space is written in surface forms, usually U+2581.
        merge_pairs: True if merges are stored as `["a", "b"]`, False for `"a b"`.
        skeleton: the document with the vocabulary and the merges emptied.
    """

    where: str
    table: ext.TokenTable = field(repr=False)
    added: tuple[AddedToken, ...]
    vocab_ids: Ids
    merges: Ids
    byte_fallback: bool
    byte_ids: Ids
    special_ids: Ids
    unused_ids: Ids
    space: str
    merge_pairs: bool
    skeleton: dict[str, object] = field(repr=False)
    _source: _Hash = field(repr=False)

    @property
    def num_ids(self) -> int:
        """One more than the highest id."""
        return self.table.num_ids

    @cached_property
    def tokens(self) -> list[str | None]:
        """Surface form of every id as stored (a space is `space`); None where no token has that id."""
        return self.table.tokens()

    @cached_property
    def exists(self) -> Mask:
        """Bool [num_ids], True for ids that have a token."""
        mask = np.zeros(self.num_ids, np.bool_)
        mask[self.vocab_ids] = True
        mask[[added.token_id for added in self.added]] = True
        return mask

    @cached_property
    def lengths(self) -> Ids:
        """int32 [num_ids], code points of every token, 0 where there is none."""
        return self.table.lengths()

    @cached_property
    def classes(self) -> npt.NDArray[np.uint8]:
        """uint8 [num_ids], the character classes that occur in every token (see `characters`)."""
        return characters.token_classes(self.table, self.space)

    def find(self, token: str) -> int | None:
        """Return the id of a surface form, None if no token has it."""
        token_id = self.table.find(token)
        return None if token_id < 0 else token_id

    def fingerprint(self, keep: Mask) -> str:
        """Return the SHA-256 of the file's bytes and a mask over its ids, in hexadecimal."""
        digest = self._source.copy()
        digest.update(np.packbits(keep).tobytes())
        return digest.hexdigest()

    @classmethod
    def read(cls, path: Path, rows: int | None = None) -> TokenizerFile:
        """Read a tokenizer.json.

        Args:
            path: the file.
            rows: rows of the embedding table that the ids index; no id may lie beyond it.

        Raises:
            SurgeryError: the file cannot be read or is not a BPE tokenizer that surgery understands.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SurgeryError("tokenizer", f"cannot read `{path}`: {error.strerror}") from None
        return cls.parse(data, str(path), rows)

    @classmethod
    def parse(cls, data: bytes, where: str, rows: int | None = None) -> TokenizerFile:
        """Parse the bytes of a tokenizer.json; `where` names them in messages. See `read`."""
        # Neither the hash nor the scan holds the GIL: the shorter one hides behind the other.
        with ThreadPoolExecutor(1) as background, _paused_collector():
            source = background.submit(hashlib.sha256, data)
            tables = scan_tables(data, where, rows) or reference_tables(data, where, rows)
        model = json_object(tables.skeleton.get("model"), where, "`model`")
        byte_fallback = model.get("byte_fallback") is True
        byte_ids = _byte_ids(tables)
        if byte_fallback and (byte_ids < 0).any():
            missing = np.flatnonzero(byte_ids < 0)
            raise SurgeryError(
                "tokenizer",
                f"need all 256 byte tokens for `byte_fallback`, got {NUM_BYTES - missing.size}:"
                f" `<0x{missing[0]:02X}>` is missing in `{where}`",
            )
        return cls(
            where=where,
            table=tables.table,
            added=tables.added,
            vocab_ids=tables.vocab_ids,
            merges=tables.merges,
            byte_fallback=byte_fallback,
            byte_ids=byte_ids,
            special_ids=np.array(sorted(a.token_id for a in tables.added if a.special), np.int32),
            unused_ids=_unused_ids(tables.table),
            space=space_mark(tables.skeleton),
            merge_pairs=tables.merge_pairs,
            skeleton=tables.skeleton,
            _source=source.result(),
        )


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Thousands of lists that stay would be searched for cycles again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _byte_ids(tables: TokenizerTables) -> Ids:
    ids = np.array([tables.table.find(f"<0x{byte:02X}>") for byte in range(NUM_BYTES)], np.int32)
    # An added token of that form is matched in the text and spells nothing.
    return np.where(np.isin(ids, tables.vocab_ids), ids, np.int32(-1))


def _unused_ids(table: ext.TokenTable) -> Ids:
    candidates = table.starting_with(_UNUSED_PREFIX)
    unused = [_UNUSED.fullmatch(table.token(token_id) or "") is not None for token_id in candidates.tolist()]
    return candidates[np.array(unused, np.bool_)]
