"""A Hugging Face tokenizer.json with a BPE model, as flat tables that surgery can cut."""

from __future__ import annotations

import gc
import operator
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import orjson

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import characters
from gemma_surgery.surgery.tokenizer_json import (
    TokenizerDocument,
    json_list,
    json_object,
    json_type,
    parse_document,
    quoted,
    split_document,
)

# Twice the largest vocabulary in use: a wild id must not allocate gigabytes.
MAX_IDS = 1 << 21
NUM_BYTES = 256
SPACE_MARK = "\u2581"

Ids = npt.NDArray[np.int32]

_UNUSED = re.compile(r"<unused\d+>")


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens`: matched in the raw text before any merge."""

    token_id: int
    content: str
    special: bool


@dataclass(frozen=True, eq=False)
class TokenizerFile:
    """The tables of a tokenizer.json.

    Attributes:
        where: the file's name, for messages.
        tokens: surface form of every id as stored (a space is `space`); None where no token has that id.
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
    tokens: list[str | None]
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

    @property
    def num_ids(self) -> int:
        """One more than the highest id."""
        return len(self.tokens)

    @cached_property
    def exists(self) -> npt.NDArray[np.bool_]:
        """Bool [num_ids], True for ids that have a token."""
        return np.fromiter((token is not None for token in self.tokens), np.bool_, self.num_ids)

    @cached_property
    def lengths(self) -> Ids:
        """int32 [num_ids], code points of every token, 0 where there is none."""
        return np.fromiter((len(token or "") for token in self.tokens), np.int32, self.num_ids)

    @cached_property
    def classes(self) -> npt.NDArray[np.uint8]:
        """uint8 [num_ids], the character classes that occur in every token (see `characters`)."""
        return characters.token_classes(self.tokens, self.space)

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
        try:
            # Parsing makes a million short-lived lists; looking for cycles among them costs a seventh.
            with _paused_collector():
                document = split_document(data) or parse_document(data, where)
                return cls._from_document(document, where, rows)
        except orjson.JSONDecodeError:
            return cls._from_document(parse_document(data, where), where, rows)

    @classmethod
    def _from_document(cls, document: TokenizerDocument, where: str, rows: int | None) -> TokenizerFile:
        skeleton = document.skeleton
        model = json_object(skeleton.get("model"), where, "`model`")
        _check_model(model, skeleton, where)
        vocab = _checked_vocab(document.vocab, where)
        added = _added_tokens(skeleton.get("added_tokens", []), vocab, where)
        tokens = _tokens_by_id(vocab, added, where, rows)
        vocab_ids = np.fromiter(vocab.values(), np.int32, len(vocab))
        merges, merge_pairs = _merge_table(document, vocab, where)
        byte_fallback = model.get("byte_fallback") is True
        byte_ids = np.array([vocab.get(f"<0x{byte:02X}>", -1) for byte in range(NUM_BYTES)], np.int32)
        if byte_fallback and (byte_ids < 0).any():
            missing = np.flatnonzero(byte_ids < 0)
            raise SurgeryError(
                "tokenizer",
                f"need all 256 byte tokens for `byte_fallback`, got {NUM_BYTES - missing.size}:"
                f" `<0x{missing[0]:02X}>` is missing in `{where}`",
            )
        return cls(
            where=where,
            tokens=tokens,
            added=added,
            vocab_ids=vocab_ids,
            merges=merges,
            byte_fallback=byte_fallback,
            byte_ids=byte_ids,
            special_ids=np.array(sorted(a.token_id for a in added if a.special), np.int32),
            unused_ids=np.array(_unused_ids(vocab, added), np.int32),
            space=_space_mark(skeleton),
            merge_pairs=merge_pairs,
            skeleton=skeleton,
        )


@contextmanager
def _paused_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_model(model: dict[str, object], skeleton: dict[str, object], where: str) -> None:
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


def _checked_vocab(value: object, where: str) -> dict[str, int]:
    entries = json_object(value, where, "`model.vocab`")
    if not entries:
        raise SurgeryError("tokenizer", f"need at least one token, got an empty `model.vocab` in `{where}`")
    if set(map(type, entries.values())) != {int}:
        token, bad = next((t, i) for t, i in entries.items() if type(i) is not int)
        raise SurgeryError(
            "tokenizer", f"need an integer id for token {quoted(token)}, got {json_type(bad)} in `{where}`"
        )
    return cast("dict[str, int]", entries)


def _added_tokens(value: object, vocab: dict[str, int], where: str) -> tuple[AddedToken, ...]:
    added: list[AddedToken] = []
    contents: set[str] = set()
    for index, entry in enumerate(json_list(value, where, "`added_tokens`")):
        what = f"`added_tokens[{index}]`"
        item = json_object(entry, where, what)
        token_id, content, special = item.get("id"), item.get("content"), item.get("special", False)
        if type(token_id) is not int or not isinstance(content, str) or not isinstance(special, bool):
            raise SurgeryError(
                "tokenizer",
                f"need an integer `id`, a string `content` and a boolean `special` in {what},"
                f" got {json_type(token_id)}, {json_type(content)} and {json_type(special)} in `{where}`",
            )
        known = vocab.get(content, token_id)
        if known != token_id:
            raise SurgeryError(
                "tokenizer",
                f"need one id for added token {quoted(content)}, got {token_id} and {known} in `{where}`",
            )
        if content in contents:
            raise SurgeryError("tokenizer", f"added token {quoted(content)} is listed twice in `{where}`")
        contents.add(content)
        added.append(AddedToken(token_id, content, special))
    return tuple(added)


def _tokens_by_id(
    vocab: dict[str, int], added: tuple[AddedToken, ...], where: str, rows: int | None
) -> list[str | None]:
    limit = MAX_IDS if rows is None else min(rows, MAX_IDS)
    extra = {a.content: a.token_id for a in added}
    entries = chain(vocab.items(), extra.items())
    highest = max(chain(vocab.values(), extra.values()))
    lowest = min(chain(vocab.values(), extra.values()))
    if highest >= limit or lowest < 0:
        token, token_id = next((t, i) for t, i in entries if i >= limit or i < 0)
        room = f"the {limit} rows of the embedding" if rows is not None else f"0 to {limit - 1}"
        raise SurgeryError(
            "tokenizer", f"need ids within {room}, got {token_id} for token {quoted(token)} in `{where}`"
        )
    tokens: list[str | None] = [None] * (highest + 1)
    for token, token_id in entries:
        taken = tokens[token_id]
        if taken is not None and taken != token:
            raise SurgeryError(
                "tokenizer",
                f"need one token per id, got {quoted(taken)} and {quoted(token)} for id {token_id}"
                f" in `{where}`",
            )
        tokens[token_id] = token
    return tokens


def _unused_ids(vocab: dict[str, int], added: tuple[AddedToken, ...]) -> list[int]:
    ids = {vocab[token] for token in filter(_UNUSED.fullmatch, vocab)}
    return sorted(ids | {a.token_id for a in added if _UNUSED.fullmatch(a.content)})


def _merge_table(document: TokenizerDocument, vocab: dict[str, int], where: str) -> tuple[Ids, bool]:
    tables: list[Ids] = []
    styles: set[type] = set()
    for block in document.merge_blocks:
        items = json_list(block, where, "`model.merges`")
        styles |= set(map(type, items))
        if not styles <= {list} and not styles <= {str}:
            raise SurgeryError(
                "tokenizer", f'need every merge as `"a b"` or every one as `["a", "b"]` in `{where}`'
            )
        tables.append(_merge_ids(_flat_pieces(items, where), vocab, where))
    table = np.concatenate(tables) if tables else np.zeros((0, 3), np.int32)
    return table, str not in styles


def _flat_pieces(items: list[object], where: str) -> list[str]:
    """Return the pieces of merges as one list: left, right, left, right."""
    if items and isinstance(items[0], str):
        lists: list[list[object]] = [list(text.split(" ")) for text in cast("list[str]", items)]
    else:
        lists = cast("list[list[object]]", items)
    flat = list(chain.from_iterable(lists))
    if set(map(len, lists)) <= {2} and set(map(type, flat)) <= {str} and "" not in flat:
        return cast("list[str]", flat)
    bad = next(
        item
        for item, pair in zip(items, lists, strict=True)
        if len(pair) != 2 or not all(isinstance(piece, str) and piece for piece in pair)
    )
    raise SurgeryError(
        "tokenizer", f"need two non-empty pieces in every merge, got {quoted(bad)} in `{where}`"
    )


def _merge_ids(flat: list[str], vocab: dict[str, int], where: str) -> Ids:
    left, right = flat[0::2], flat[1::2]
    columns: tuple[Iterable[str], ...] = (left, right, map(operator.add, left, right))
    table = np.empty((len(left), 3), np.int32)
    try:
        for column, pieces in enumerate(columns):
            table[:, column] = np.fromiter(map(vocab.__getitem__, pieces), np.int32, len(left))
    except KeyError:
        for a, b in zip(left, right, strict=True):
            for piece, role in ((a, "names"), (b, "names"), (a + b, "makes")):
                if piece not in vocab:
                    raise SurgeryError(
                        "tokenizer",
                        f"merge [{quoted(a)}, {quoted(b)}] {role} {quoted(piece)},"
                        f" which is not in `model.vocab` of `{where}`",
                    ) from None
        raise
    return table


def _components(value: object) -> Iterator[dict[str, object]]:
    """Yield a normalizer, pre-tokenizer or decoder and the members of a `Sequence`."""
    if isinstance(value, dict):
        yield value
        for key in ("normalizers", "pretokenizers", "decoders"):
            members = value.get(key)
            for member in members if isinstance(members, list) else []:
                yield from _components(member)


def _space_mark(skeleton: dict[str, object]) -> str:
    for part in chain(_components(skeleton.get("normalizer")), _components(skeleton.get("pre_tokenizer"))):
        content = part.get("content") if part.get("pattern") == {"String": " "} else None
        mark = part.get("replacement") if part.get("type") == "Metaspace" else content
        if isinstance(mark, str) and len(mark) == 1:
            return mark
    return " "
