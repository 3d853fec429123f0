"""The fast way into a tokenizer.json: one native pass over its bytes.

It understands what the `tokenizers` library writes, in any layout and order. Everything else, and everything
that is wrong, goes to `tokenizer_reference`, which reads in Python and says precisely what is the matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from gemma_surgery._native import ext
from gemma_surgery.surgery.tokenizer_skeleton import (
    AddedToken,
    Ids,
    added_tokens,
    check_model,
    id_limit,
    out_of_range,
    taken_twice,
)


@dataclass(frozen=True, eq=False)
class TokenizerTables:
    """The content of a tokenizer.json.

    Attributes:
        skeleton: the document with the vocabulary and the merges emptied.
        table: every token, those of the vocabulary and the added ones.
        added: the entries of `added_tokens`, in file order.
        vocab_ids: int32 [V], the ids of `model.vocab` in file order.
        merges: int32 [M, 3], left, right and resulting id of every merge, in rank order.
        merge_pairs: True if merges are stored as `["a", "b"]`, False for `"a b"`.
    """

    skeleton: dict[str, object] = field(repr=False)
    table: ext.TokenTable
    added: tuple[AddedToken, ...]
    vocab_ids: Ids
    merges: Ids
    merge_pairs: bool


def scan_tables(data: bytes, where: str, rows: int | None) -> TokenizerTables | None:
    """Scan the bytes of a tokenizer.json.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.
        rows: rows of the embedding table that the ids index.

    Returns:
        None if anything is unusual.

    Raises:
        SurgeryError: the vocabulary and the merges are in order, and something beside them is not.
    """
    scan = ext.scan_tokenizer(data, id_limit(rows))
    if scan is None:
        return None
    table, vocab_ids, merges, merge_pairs, vocab_span, merges_span = scan
    skeleton = _skeleton(data, sorted((vocab_span, merges_span)))
    if skeleton is None:
        return None
    check_model(skeleton, where)
    added = added_tokens(skeleton, lambda token: None if (i := table.find(token)) < 0 else i, where)
    _add_to(table, added, where, rows)
    return TokenizerTables(skeleton, table, added, vocab_ids, merges, merge_pairs)


def _skeleton(data: bytes, spans: list[tuple[int, int]]) -> dict[str, object] | None:
    """Parse the document with both values as null; None if it is not JSON."""
    view = memoryview(data)
    (first_start, first_stop), (second_start, second_stop) = spans
    parts = (view[:first_start], b"null", view[first_stop:second_start], b"null", view[second_stop:])
    try:
        skeleton: object = orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError:
        return None
    return skeleton if isinstance(skeleton, dict) else None


def _add_to(table: ext.TokenTable, added: tuple[AddedToken, ...], where: str, rows: int | None) -> None:
    limit = id_limit(rows)
    for token in added:
        if not 0 <= token.token_id < limit:
            raise out_of_range(token.content, token.token_id, rows, where)
    for token in added:
        taken = table.token(token.token_id)
        if taken is None:
            table.add(token.content, token.token_id)
        elif taken != token.content:
            raise taken_twice(taken, token.content, token.token_id, where)
