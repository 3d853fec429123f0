"""Judging many candidates against one original, which is run once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.quality.divergence import Side, compare
from gemma_surgery.quality.evaluation import SAMPLES, divergence_of
from gemma_surgery.quality.protocol import CHUNK_TOKENS, in_other_tokens, is_chat, make_protocol
from gemma_surgery.quality.results import Divergence
from gemma_surgery.quality.subject import ModelSource, Subject
from gemma_surgery.quality.vocabulary import Credit, first_pieces
from gemma_surgery.surgery.executor import execute
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.surgery.pool import Progress, Silent

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage

Progresses = Callable[[str], Progress]


class Referee:
    """Keeps what the original expects at every scored place.

    Args:
        reference: the original.
        passages: at least one; those with images are left out.
        samples: passages, or chunks of raw text, that are scored at most.
        max_tokens: of a sample.
        progress: makes a progress report for a phase of this name.

    Attributes:
        protocol: how distributions are compared.

    Raises:
        SurgeryError: no such checkpoint, or nothing to score.
    """

    def __init__(
        self,
        reference: ModelSource,
        passages: Sequence[Passage],
        *,
        samples: int = SAMPLES,
        max_tokens: int = CHUNK_TOKENS,
        progress: Progresses | None = None,
    ) -> None:
        self._subject = Subject.open(reference)
        self._progress = progress or (lambda phase: Silent())
        self._max_tokens = max_tokens
        self._chat = is_chat(self._subject.tokenizer)
        texts = [passage for passage in passages if passage.image is None]
        self._passages = texts[:samples] if self._chat else texts
        self.protocol, scored = make_protocol(
            self._passages,
            self._subject.tokenizer,
            self._subject.config,
            chat=self._chat,
            max_tokens=max_tokens,
            most_chunks=samples,
        )
        self._scored = scored

    @property
    def identity(self) -> str:
        """Hash of original, data and protocol."""
        text = json.dumps([self._subject.checkpoint.fingerprint, self.protocol.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _side(self) -> Side:
        return self._subject.read(self._scored, self._progress("original"))

    def judge(self, candidate: ModelSource, phase: str = "candidate") -> Divergence:
        """Compare a candidate with the original.

        Args:
            candidate: a checkpoint made of the original.
            phase: what its progress report is called.

        Raises:
            SurgeryError: no such checkpoint, or not one that can be run.
        """
        original, subject = self._subject, Subject.open(candidate)
        scored = in_other_tokens(
            self._passages,
            self._scored,
            (original.tokenizer, original.config),
            (subject.tokenizer, subject.config),
            chat=self._chat,
            max_tokens=self._max_tokens,
        )
        has_text = [index for index, each in enumerate(self._scored) if len(each.tokens)]
        side = subject.read([scored[index] for index in has_text], self._progress(phase))
        mine = Side(
            self._side.tokens,
            self._side.head,
            [self._scored[index] for index in has_text],
            [self._side.states[index] for index in has_text],
        )
        credit = Credit(original.tokens, subject.tokens, first_pieces(original.tokens, subject.tokens))
        return divergence_of(compare(mine, side, credit), credit, is_lower_bound=False)

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
