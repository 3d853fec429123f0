"""The reference's likeliest tokens on disk, so that a big model is run once for many candidates.

Per scored token: the `k` largest log-probabilities with their ids, what is left over (the tail), the right
token's log-probability and the log-sum-exp. A KL divergence from it lumps the tail together and is a lower
bound, by the log-sum inequality.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.header import encode_header, read_header
from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.alignment import align, spell
from gemma_surgery.quality.divergence import (
    Comparison,
    Side,
    blocks_of,
    chosen,
    log_softmax,
    rows_at,
    states_at,
    tile_positions,
    unit_logprobs,
    unit_sums,
    unmatched,
)
from gemma_surgery.quality.protocol import Protocol, Scored
from gemma_surgery.quality.vocabulary import Credit, ModelTokens

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer

TOP_K = 256
KEY = "reference_cache"
WHERE = "cache"
SUFFIX = ".safetensors"

Numbers = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Advance = Callable[[int], None]

_DTYPES = {"ids": "I32", "logprobs": "F32", "tail": "F32", "right": "F32", "logsumexp": "F32"}
_NUMPY = {"I32": "<i4", "F32": "<f4"}


@dataclass(frozen=True, eq=False)
class ReferenceCache:
    """What is kept of a reference; n scored tokens of all samples, one behind the other.

    Attributes:
        ids: int32 `[n, k]`, likeliest first.
        logprobs: float32 `[n, k]`.
        tail: float32 `[n]`, the probability of all other tokens.
        right: float32 `[n]`, log-probability of the token that is there.
        logsumexp: float32 `[n]`, of the logits.
    """

    ids: Ids
    logprobs: Numbers
    tail: Numbers
    right: Numbers
    logsumexp: Numbers


def cache_key(fingerprint: str, protocol: Protocol, scored: Sequence[Scored]) -> str:
    """What a cache belongs to, as JSON: checkpoint, data, protocol and the tokens that were scored."""
    digest = hashlib.sha256()
    for each in scored:
        digest.update(each.sample.tokens.astype("<i4").tobytes() + each.first.to_bytes(8, "little"))
    document = {"checkpoint": fingerprint, "tokens_sha256": digest.hexdigest(), **protocol.to_json()}
    return json.dumps(document, sort_keys=True)


def measure_reference(side: Side, k: int = TOP_K, advance: Advance = lambda done: None) -> ReferenceCache:
    """Take down the likeliest tokens at every scored position.

    Args:
        side: the reference and its samples.
        k: tokens to keep per position; fewer where the vocabulary is smaller.
        advance: called with the number of positions done.
    """
    id_of_row = side.tokens.id_of_row
    k = min(k, int((id_of_row >= 0).sum()))
    hidden = np.concatenate(side.states)
    targets = side.tokens.rows_of(np.concatenate([each.tokens for each in side.scored]))
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    tile = tile_positions(side)
    for start in range(0, len(hidden), tile):
        logits = side.head.logits(mx.array(hidden[start : start + tile]))
        done = start
        for (block,) in blocks_of(logits):
            here = targets[done : done + len(block)]
            done += len(block)
            parts.append(_taken_down(block, here, id_of_row, k))
        advance(done - start)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return ReferenceCache(columns[0].astype(np.int32), *(each.astype(np.float32) for each in columns[1:]))


def _taken_down(
    logits: npt.NDArray[np.float64], targets: Ids, id_of_row: Ids, k: int
) -> tuple[npt.NDArray[np.generic], ...]:
    ln_p = log_softmax(logits)
    rows = np.argpartition(-ln_p, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(ln_p, rows, axis=1), axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, axis=1)
    top = np.take_along_axis(ln_p, rows, axis=1)
    tail = np.maximum(0.0, 1.0 - np.exp(top).sum(axis=1)) if k < ln_p.shape[1] else np.zeros(len(top))
    index = np.arange(len(logits))
    right = chosen(ln_p, targets)
    best = logits.argmax(axis=1)
    return id_of_row[rows], top, tail, right, logits[index, best] - ln_p[index, best]


def write_cache(path: Path, key: str, cache: ReferenceCache) -> None:
    """Write a cache beside its place and move it there.

    Raises:
        SurgeryError: the file cannot be written.
    """
    arrays = {name: getattr(cache, name) for name in _DTYPES}
    header, _ = encode_header(
        [(name, _DTYPES[name], array.shape) for name, array in arrays.items()], {KEY: key}
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(header)
            for name, array in arrays.items():
                stream.write(np.ascontiguousarray(array, _NUMPY[_DTYPES[name]]).tobytes())
        temporary.replace(path)
    except OSError as error:
        raise SurgeryError(WHERE, f"cannot write `{path}`: {os_reason(error)}") from None


def read_cache(path: Path, key: str, positions: int) -> ReferenceCache:
    """Read the cache of one reference under one protocol.

    Args:
        path: of the file.
        key: from `cache_key`: what the cache must have been made for.
        positions: scored tokens that it must hold.

    Raises:
        SurgeryError: malformed, unreadable, or made for something else, which is named.
    """
    header = read_header(path)
    stored = header.metadata.get(KEY)
    if stored != key:
        raise SurgeryError(
            WHERE,
            f"need a cache of this reference, data and protocol, got {_difference(stored, key)} in `{path}`",
            "give another file name: it is written when it does not exist",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SurgeryError(WHERE, f"cannot read `{path}`: {os_reason(error)}") from None
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, dtype in _DTYPES.items():
        info = header.tensors.get(name)
        wanted = 2 if name in ("ids", "logprobs") else 1
        if info is None or info.dtype != dtype or len(info.shape) != wanted or info.shape[0] != positions:
            got = "nothing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise SurgeryError(
                WHERE, f"need {dtype} for {positions:,} positions, got {got} in `{name}` of `{path}`"
            )
        arrays[name] = np.frombuffer(data[info.start : info.end], _NUMPY[dtype]).reshape(info.shape)
    if arrays["ids"].shape != arrays["logprobs"].shape:
        raise SurgeryError(WHERE, f"need as many ids as log-probabilities, got others in `{path}`")
    return ReferenceCache(**arrays)  # type: ignore[arg-type]


def compare_cached(
    cache: ReferenceCache,
    reference: tuple[ModelTokens, Sequence[Scored]],
    candidate: Side,
    credit: Credit,
    advance: Advance = lambda done: None,
) -> Comparison:
    """Compare a candidate with a cached reference; the divergences are lower bounds.

    Tokens that share a piece of the candidate with others join the tail, so that the bound holds for pruned
    vocabularies too; what control tokens without a piece have in the tail counts as if they had one.

    Args:
        cache: of the reference.
        reference: its vocabulary and scored samples.
        candidate: the model that is judged.
        credit: what the reference's tokens are in the candidate's.
        advance: called with the number of positions done.
    """
    vocabulary, scored = reference
    places = [
        align(_spelled(vocabulary.tokenizer, mine), _spelled(candidate.tokens.tokenizer, its))
        for mine, its in zip(scored, candidate.scored, strict=True)
    ]
    mine, its = [each.reference for each in places], [each.candidate for each in places]
    offsets = np.cumsum([0, *(len(each.tokens) for each in scored)])
    index = np.concatenate([start + ends[:-1] for start, ends in zip(offsets[:-1], mine, strict=True)])
    hidden, rows = states_at(candidate, its), rows_at(candidate, its)
    kld, tops, lost = [np.empty(0)], [np.empty(0, bool)], [np.empty(0)]
    right = [np.empty(0)]
    tile = tile_positions(candidate)
    for start in range(0, len(hidden), tile):
        done = start
        for (block,) in blocks_of(candidate.head.logits(mx.array(hidden[start : start + tile]))):
            here = slice(done, done + len(block))
            done = here.stop
            ln_q = log_softmax(block)
            right.append(chosen(ln_q, rows[here]))
            found = _lumped(cache, index[here], ln_q, candidate.tokens, credit)
            for parts, part in zip((kld, tops, lost), found, strict=True):
                parts.append(part)
        advance(done - start)
    known = np.split(cache.right.astype(np.float64), offsets[1:-1])
    return Comparison(
        np.concatenate(kld),
        np.concatenate(tops),
        np.concatenate(lost),
        np.concatenate([unit_sums(values, ends) for values, ends in zip(known, mine, strict=True)]),
        unit_logprobs(candidate, its, np.concatenate(right)),
        unmatched(places),
    )


def _lumped(
    cache: ReferenceCache,
    index: npt.NDArray[np.int64],
    ln_q: npt.NDArray[np.float64],
    vocabulary: ModelTokens,
    credit: Credit,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Divergences, agreement and lost mass at some positions."""
    ids = cache.ids[index]
    p = np.exp(cache.logprobs[index].astype(np.float64))
    pieces = credit.pieces[ids]
    rows = vocabulary.rows_of(pieces)
    lost = np.where(rows < 0, p, 0.0).sum(axis=1)
    p_kept = np.where(rows < 0, 0.0, p) / np.maximum(1.0 - lost, np.finfo(np.float64).tiny)[:, None]
    single = credit.is_single(rows)
    ln_q_top = np.take_along_axis(ln_q, np.maximum(rows, 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(single & (p_kept > 0), p_kept * (np.log(p_kept) - ln_q_top), 0.0).sum(axis=1)
        shared = np.where(single, 0.0, p_kept).sum(axis=1)
        p_rest = shared + cache.tail[index] / np.maximum(1.0 - lost, np.finfo(np.float64).tiny)
        q_rest = np.maximum(0.0, 1.0 - np.where(single, np.exp(ln_q_top), 0.0).sum(axis=1))
        rest = np.where((p_rest > 0) & (q_rest > 0), p_rest * np.log(p_rest / q_rest), 0.0)
    top = np.array([_largest(row, mass) for row, mass in zip(rows, p_kept, strict=True)], np.int64)
    return np.maximum(0.0, terms + rest), top == ln_q.argmax(axis=1), lost


def _largest(rows: Ids, mass: npt.NDArray[np.float64]) -> int:
    """The row with the most mass, tokens that share one added up."""
    unique, inverse = np.unique(rows, return_inverse=True)
    return int(unique[np.bincount(inverse.ravel(), mass).argmax()])


def _spelled(tokenizer: Tokenizer, scored: Scored) -> list[bytes]:
    return spell(tokenizer, scored.tokens.tolist())


def _difference(stored: str | None, key: str) -> str:
    """What a cache was made for, as far as it is not this."""
    if stored is None:
        return "another kind of file"
    try:
        found = json.loads(stored)
    except ValueError:
        return "a malformed one"
    wanted = json.loads(key)
    if not isinstance(found, dict):
        return "a malformed one"
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return f"one of another {' and '.join(names[:3])}"
