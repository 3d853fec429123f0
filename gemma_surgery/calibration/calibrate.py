"""From passages to a profile in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.calibration.measure import Request, Times, make_profile
from gemma_surgery.calibration.passages import passages_sha256
from gemma_surgery.calibration.samples import make_samples
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import read_model_config

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.calibration.ranks import Ranks
    from gemma_surgery.checkpoint.model_folder import Checkpoint
    from gemma_surgery.surgery.pool import Progress

MAX_TOKENS = 256


@dataclass(frozen=True)
class Calibrated:
    """How a profile came to be.

    Attributes:
        samples: how many were measured.
        is_chat: whether they were written as turns of a chat.
        times: where the time went.
    """

    samples: int
    is_chat: bool
    times: Times


def calibrate(
    checkpoint: Checkpoint,
    passages: Sequence[Passage],
    path: Path,
    *,
    hessians: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
    is_raw: bool = False,
    resume: bool = False,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure a checkpoint on passages and write its profile.

    Args:
        checkpoint: opened whole if passages show images.
        passages: turns of a chat where the checkpoint has a chat template, else raw text.
        path: the profile.
        hessians: patterns of the linears whose Hessians are collected, e.g. `DOWN_PROJ`.
        max_tokens: of a sample; prompts with images are not cut.
        is_raw: raw text also where there is a chat template.
        resume: go on after the last finished layer of an interrupted run.
        ranks: the machines that share the work.
        progress: told of this rank's tokens times layers.

    Raises:
        SurgeryError: see `make_samples` and `make_profile`.
    """
    tokenizer = Tokenizer.load(checkpoint)
    is_chat = tokenizer.template is not None and not is_raw
    samples = make_samples(
        passages, tokenizer, read_model_config(checkpoint), chat=is_chat, max_tokens=max_tokens
    )
    request = Request(passages_sha256(passages), tuple(hessians), resume)
    times = make_profile(checkpoint, samples, path, request, ranks=ranks, progress=progress)
    return Calibrated(len(samples), is_chat, times)
