"""Judging many candidates against one original, which is run once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.divergence import Comparison, Side, compare
from gemma_surgery.quality.protocol import (
    CHUNK_TOKENS,
    SAMPLES,
    Scored,
    in_other_tokens,
    is_chat,
    make_protocol,
)
from gemma_surgery.quality.reference_cache import ReferenceCache, compare_cached
from gemma_surgery.quality.results import Divergence, VocabularyReport
from gemma_surgery.quality.statistics import kl_divergences, perplexities, same_top, token_probabilities
from gemma_surgery.quality.subject import ModelSource, Progresses, Subject
from gemma_surgery.quality.vocabulary import Credit, first_pieces
from gemma_surgery.surgery.executor import execute
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.surgery.pool import Silent

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage

WHERE = "eval"


class Referee:
    """Compares candidates with what the original expects at every scored place.

    Args:
        reference: the original.
        passages: at least one.
        samples: passages, or chunks of raw text, that are scored at most.
        max_tokens: of a sample.
        chat: score turns of a chat; by default where the original has a chat template.
        images: also score passages with images, which are left out by default.
        progress: makes a progress report for a phase of this name.

    Attributes:
        protocol: how distributions are compared.
        scored: samples with text to score, in the original's tokens.
        expected: what the original expects there; it is run when that is first needed, unless this was set.
            From a cache, divergences are lower bounds.

    Raises:
        SurgeryError: no such checkpoint, or nothing to score.
    """

    def __init__(
        self,
        reference: ModelSource | Subject,
        passages: Sequence[Passage],
        *,
        samples: int = SAMPLES,
        max_tokens: int = CHUNK_TOKENS,
        chat: bool | None = None,
        images: bool = False,
        progress: Progresses | None = None,
    ) -> None:
        self._original = reference if isinstance(reference, Subject) else Subject.open(reference)
        self._progress = progress or (lambda phase: Silent())
        self._max_tokens = max_tokens
        self._chat = is_chat(self._original.tokenizer) if chat is None else chat
        chosen = [passage for passage in passages if images or passage.image is None]
        if self._chat:
            chosen = chosen[:samples]
        self.protocol, scored = make_protocol(
            chosen,
            self._original.tokenizer,
            self._original.config,
            chat=self._chat,
            max_tokens=max_tokens,
            most_chunks=samples,
        )
        has_text = [index for index, each in enumerate(scored) if len(each.tokens)]
        self.scored = [scored[index] for index in has_text]
        # Chunks are cut out of all passages, turns belong to one.
        self._passages = [chosen[index] for index in has_text] if self._chat else chosen
        self.expected: Side | ReferenceCache | None = None

    @property
    def identity(self) -> str:
        """Hash of original, data and protocol."""
        text = json.dumps([self._original.checkpoint.fingerprint, self.protocol.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def scored_by(self, candidate: Subject) -> list[Scored]:
        """What a candidate reads where the original reads `scored`.

        Raises:
            SurgeryError: a passage cannot be encoded.
        """
        return in_other_tokens(
            self._passages,
            self.scored,
            (self._original.tokenizer, self._original.config),
            (candidate.tokenizer, candidate.config),
            chat=self._chat,
            max_tokens=self._max_tokens,
        )

    def compare(self, candidate: Side, advance: Callable[[int], None] = lambda done: None) -> Divergence:
        """Compare a candidate that has read `scored_by` with the original.

        Args:
            candidate: what it expects.
            advance: called with the number of places done.

        Raises:
            SurgeryError: the models share no place of the texts, or none that the candidate can write.
        """
        tokens = self._original.tokens
        credit = Credit(tokens, candidate.tokens, first_pieces(tokens, candidate.tokens))
        if self.expected is None:
            self.expected = self._original.read(self.scored, self._progress("original"))
        if isinstance(self.expected, ReferenceCache):
            found = compare_cached(self.expected, (tokens, self.scored), candidate, credit, advance)
            return _figures(found, credit, is_lower_bound=True)
        return _figures(compare(self.expected, candidate, credit, advance), credit, is_lower_bound=False)

    def judge(self, candidate: ModelSource, phase: str = "candidate") -> Divergence:
        """Run a candidate and compare it with the original.

        Args:
            candidate: a checkpoint made of the original.
            phase: what its progress report is called.

        Raises:
            SurgeryError: no such checkpoint, or not one that can be run.
        """
        subject = Subject.open(candidate)
        return self.compare(subject.read(self.scored_by(subject), self._progress(phase)))

    def judge_plan(
        self, plan: Plan, phase: str = "candidate", *, threads: int | None = None, folder: Path | None = None
    ) -> Divergence:
        """Make the checkpoint of a plan, compare it and remove it again.

        Args:
            plan: made of the original.
            phase: what its progress report is called.
            threads: workers that make it.
            folder: where it is made; the system's temporary folder by default.

        Raises:
            SurgeryError: it cannot be made or run.
        """
        with tempfile.TemporaryDirectory(prefix=".gemma-surgery-", dir=folder) as place:
            candidate = Path(place) / "candidate"
            execute(plan, candidate, threads=threads)
            return self.judge(candidate, phase)


def _figures(found: Comparison, credit: Credit, *, is_lower_bound: bool) -> Divergence:
    """Figures of a comparison.

    Raises:
        SurgeryError: the models share no place of the texts, or none that the candidate can write.
    """
    if not len(found.kld):
        raise SurgeryError(
            WHERE,
            "need texts that both tokenizers write alike, got none",
            "compare checkpoints of one family",
        )
    possible = np.isfinite(found.candidate_logprob) & np.isfinite(found.reference_logprob)
    base, own = found.reference_logprob[possible], found.candidate_logprob[possible]
    if not len(base):
        raise SurgeryError(
            WHERE,
            f"need text that the model has tokens for, got none of {len(possible):,} places",
            "is the tokenizer the one that belongs to the checkpoint?",
        )
    vocabulary = VocabularyReport(
        respelled=credit.num_respelled,
        without_piece=credit.num_without_piece,
        lost_mass=float(found.lost.mean()),
        worst_lost_mass=float(found.lost.max()),
        unmatched_reference=found.unmatched[0],
        unmatched_candidate=found.unmatched[1],
        impossible=int((~possible).sum()),
    )
    return Divergence(
        len(found.kld),
        kl_divergences(found.kld),
        is_lower_bound,
        same_top(found.same_top),
        perplexities(base, own),
        token_probabilities(base, own),
        vocabulary,
    )
