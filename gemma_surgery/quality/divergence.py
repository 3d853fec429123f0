"""How far one model's next-token distributions are from another's, a tile of positions at a time.

Letters: n positions, E hidden, R rows of a head. Logits are never made for more positions than a tile has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.quality.alignment import Alignment, align, spell
from gemma_surgery.quality.vocabulary import Credit, ModelTokens

if TYPE_CHECKING:
    from gemma_surgery.quality.protocol import Scored

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
States = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Advance = Callable[[int], None]

# Float32 logits of both models together.
TILE_BYTES = 64 << 20
# Float64 values worked on at a time: a few arrays of them fit into the cache.
BLOCK_VALUES = 1 << 17


class Head(Protocol):
    """The output head of a model, as `gemma_surgery.models.gemma3.vocabulary.Vocabulary` has it."""

    def logits(self, hidden: mx.array) -> mx.array:
        """`[n, E]` -> `[n, R]`, minus infinity for rows of no token."""
        ...

    def log_probs(self, hidden: mx.array, tokens: mx.array) -> mx.array:
        """`[n, E]` and ids int32 `[n]` -> log-probabilities `[n]`."""
        ...


@dataclass(frozen=True, eq=False)
class Side:
    """One of two models, after it has read the samples.

    Attributes:
        tokens: its vocabulary.
        head: its output head.
        scored: what is scored of each sample, in its own tokens.
        states: per sample float32 `[len, E]`: the state before each token from `scored.first` on.
    """

    tokens: ModelTokens
    head: Head
    scored: Sequence[Scored]
    states: Sequence[States]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models at the same places of the same texts.

    Attributes:
        kld: float64 `[n]`, `sum p (ln p - ln q)` over the candidate's tokens, p the reference's.
        same_top: bool `[n]`, whether both find the same token likeliest.
        lost: float64 `[n]`, the reference's probability of control tokens that the candidate lacks.
        reference_logprob: float64 `[n]`, of the text from this place to the next.
        candidate_logprob: the same; minus infinity where the candidate has no token for it.
        unmatched: scored tokens of the reference and of the candidate that begin where the other has none.
    """

    kld: Numbers
    same_top: Flags
    lost: Numbers
    reference_logprob: Numbers
    candidate_logprob: Numbers
    unmatched: tuple[int, int]


def alignments(reference: Side, candidate: Side) -> list[Alignment]:
    """Where the tokens of both sides begin at the same place, per sample, counted from the scored part on."""
    return [
        align(_spelled(reference, mine), _spelled(candidate, its))
        for mine, its in zip(reference.scored, candidate.scored, strict=True)
    ]


def token_logprobs(side: Side) -> list[Numbers]:
    """Log-probability of every scored token, float64 per sample; minus infinity for a token without a row."""
    return [_sample_logprobs(side, index) for index in range(len(side.scored))]


def tile_positions(*sides: Side) -> int:
    """Positions whose logits in all of these models fit into `TILE_BYTES`."""
    return max(1, TILE_BYTES // (4 * sum(side.tokens.id_of_row.size for side in sides)))


def compare(
    reference: Side, candidate: Side, credit: Credit, advance: Advance = lambda done: None
) -> Comparison:
    """Compare two models wherever their tokens begin at the same place of the text.

    Args:
        reference: the model that is taken to be right.
        candidate: the model that is judged.
        credit: what the reference's tokens are in the candidate's.
        advance: called with the number of positions done.

    Returns:
        One entry per place. A model compared with itself gives divergences of exactly 0.
    """
    places = alignments(reference, candidate)
    mine, its = [each.reference for each in places], [each.candidate for each in places]
    hidden, rows = states_at(reference, mine), rows_at(reference, mine)
    other, other_rows = states_at(candidate, its), rows_at(candidate, its)
    kld, tops, lost = [np.empty(0)], [np.empty(0, bool)], [np.empty(0)]
    right, other_right = [np.empty(0)], [np.empty(0)]
    tile = tile_positions(reference, candidate)
    for start in range(0, len(hidden), tile):
        logits = reference.head.logits(mx.array(hidden[start : start + tile]))
        other_logits = candidate.head.logits(mx.array(other[start : start + tile]))
        done = start
        for p_logits, q_logits in blocks_of(logits, other_logits):
            here = slice(done, done + len(p_logits))
            done = here.stop
            ln_p, ln_q = log_softmax(p_logits), log_softmax(q_logits)
            right.append(chosen(ln_p, rows[here]))
            other_right.append(chosen(ln_q, other_rows[here]))
            p, p_lost = np.exp(ln_p), np.zeros(len(ln_p))
            if not credit.is_identity:
                p, p_lost = credit.carry(p)
                with np.errstate(divide="ignore"):
                    ln_p = np.log(p)
            kld.append(divergence(p, ln_p, ln_q))
            tops.append(p.argmax(axis=1) == q_logits.argmax(axis=1))
            lost.append(p_lost)
        advance(done - start)
    return Comparison(
        np.concatenate(kld),
        np.concatenate(tops),
        np.concatenate(lost),
        unit_logprobs(reference, mine, np.concatenate(right)),
        unit_logprobs(candidate, its, np.concatenate(other_right)),
        unmatched(places),
    )


def log_softmax(logits: Numbers) -> Numbers:
    """Natural log-probabilities of float64 logits `[n, R]`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def divergence(p: Numbers, ln_p: Numbers, ln_q: Numbers) -> Numbers:
    """`sum p (ln p - ln q)` over the last axis, float64 `[n]`; where p is 0 it counts nothing."""
    with np.errstate(invalid="ignore"):
        terms = p * (ln_p - ln_q)
    return np.asarray(np.where(p > 0, terms, 0.0).sum(axis=1))


def chosen(ln_p: Numbers, rows: npt.NDArray[np.int32]) -> Numbers:
    """One entry of each row of `[n, R]`, minus infinity where the row is -1."""
    found = np.take_along_axis(ln_p, np.maximum(rows, 0)[:, None], axis=1)[:, 0]
    return np.where(rows >= 0, found, -np.inf)


def unit_logprobs(side: Side, places: Sequence[Indices], first: Numbers) -> Numbers:
    """Log-probabilities of the text from each place to the next, samples one behind the other.

    Args:
        side: model and samples.
        places: per sample int64 `[n + 1]`, from an `Alignment`.
        first: float64, of the token that begins at each place.
    """
    sums: list[Numbers] = [np.empty(0)]
    start = 0
    for index, ends in enumerate(places):
        units = first[start : start + len(ends) - 1]
        start += len(units)
        if ends[-1] > len(units):
            values = _sample_logprobs(side, index)
            # Set to 0 rather than subtracted: it may be minus infinity.
            values[ends[:-1]] = 0.0
            units = units + unit_sums(values, ends)
        sums.append(units)
    return np.concatenate(sums)


def unit_sums(values: Numbers, ends: Indices) -> Numbers:
    """Sums of the tokens' values from each place to the next."""
    return np.add.reduceat(values[: ends[-1]], ends[:-1]) if len(ends) > 1 else np.empty(0)


def unmatched(places: Sequence[Alignment]) -> tuple[int, int]:
    """Tokens of both sides that begin where the other has no boundary, in all samples."""
    return sum(each.unmatched[0] for each in places), sum(each.unmatched[1] for each in places)


def states_at(side: Side, places: Sequence[Indices]) -> States:
    """States before the token at each place, samples one behind the other: float32 `[n, E]`."""
    return np.concatenate([states[ends[:-1]] for states, ends in zip(side.states, places, strict=True)])


def rows_at(side: Side, places: Sequence[Indices]) -> npt.NDArray[np.int32]:
    """Rows of the token at each place, int32 `[n]`, -1 for one without."""
    pairs = zip(side.scored, places, strict=True)
    return side.tokens.rows_of(np.concatenate([scored.tokens[ends[:-1]] for scored, ends in pairs]))


def blocks_of(*logits: mx.array) -> Iterator[tuple[Numbers, ...]]:
    """The same rows of each `[n, R]` in float64, a few at a time."""
    values = [np.asarray(each.astype(mx.float32)) for each in logits]
    step = max(1, BLOCK_VALUES // max(each.shape[1] for each in values))
    for start in range(0, len(values[0]), step):
        yield tuple(each[start : start + step].astype(np.float64) for each in values)


def _spelled(side: Side, scored: Scored) -> list[bytes]:
    return spell(side.tokens.tokenizer, scored.tokens.tolist())


def _sample_logprobs(side: Side, index: int) -> Numbers:
    tokens, states = side.scored[index].tokens, side.states[index]
    known = side.tokens.rows_of(tokens) >= 0
    ids = np.where(known, tokens, side.tokens.id_of_row.max()).astype(np.int32)
    tile = tile_positions(side)
    parts = [
        np.asarray(side.head.log_probs(mx.array(states[here]), mx.array(ids[here])), np.float64)
        for here in (slice(start, start + tile) for start in range(0, len(ids), tile))
    ]
    return np.where(known, np.concatenate([np.empty(0), *parts]), -np.inf)
