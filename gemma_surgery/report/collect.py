"""Reading everything that a report is made of, files first and models last."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from gemma_surgery.calibration.passages import read_passages
from gemma_surgery.checkpoint.hub import is_repo_id
from gemma_surgery.checkpoint.json_types import read_small_file
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.report.activity import read_activity
from gemma_surgery.report.answers import PROMPTS, Answer, ask_both, read_prompts
from gemma_surgery.report.fields import WHERE
from gemma_surgery.report.material import Material
from gemma_surgery.report.measurements import Search, read_evaluation, read_search, read_speeds
from gemma_surgery.report.outcome import read_outcome
from gemma_surgery.report.scripts import tokens_by_script
from gemma_surgery.surgery.pool import Progress, Silent

TOKENIZER = "tokenizer.json"
README = "README.md"
_LICENSE = re.compile(r"^license:[ \t]*([A-Za-z0-9._-]{1,40})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Files:
    """What the user gave; everything but the folder may be missing.

    Attributes:
        folder: the output.
        answers: prompts, and images, at most.
        max_tokens: of an answer.
    """

    folder: Path
    evaluations: tuple[Path, ...] = ()
    profile: Path | None = None
    search: Path | None = None
    benches: tuple[Path, ...] = ()
    reference: str | None = None
    prompts: Path | None = None
    images: Path | None = None
    answers: int = len(PROMPTS)
    max_tokens: int = 160


def collect(files: Files, progress: Progress | None = None) -> Material:
    """Read it all; every file is checked before a model is loaded.

    Raises:
        SurgeryError: a file is not what it should be.
    """
    outcome = read_outcome(files.folder)
    measured = [read_evaluation(path) for path in files.evaluations]
    activity = None
    if files.profile is not None:
        own = outcome.checkpoint.fingerprint
        activity = read_activity(files.profile, outcome.source_fingerprint, own)
    search = Search() if files.search is None else read_search(files.search)
    speeds = tuple(row for path in files.benches for row in read_speeds(path))
    family = Gemma3(outcome.checkpoint.config)
    multimodal = family.has_vision(outcome.checkpoint.tensors)
    reference = None if files.reference is None else open_checkpoint(files.reference)
    is_source = reference is not None and reference.fingerprint == outcome.source_fingerprint
    source = reference if is_source else None
    answers, image_answers = _answers(files, reference, multimodal, progress or Silent())
    return Material(
        outcome=outcome,
        evaluations=tuple(whole for whole, _ in measured if whole is not None),
        step_costs=tuple(steps for _, steps in measured if steps is not None),
        activity=activity,
        search=search,
        speeds=speeds,
        answers=tuple(answers),
        image_answers=tuple(image_answers),
        scripts=_scripts(outcome.checkpoint),
        scripts_before={} if source is None else _scripts(source),
        reference=_name(files.reference) if files.reference else "",
        reference_is_source=is_source,
        base_model=files.reference if is_source and files.reference and _is_remote(files.reference) else "",
        license="" if source is None else _license(source.path),
        multimodal=multimodal,
    )


def _answers(
    files: Files, reference: Checkpoint | None, multimodal: bool, progress: Progress
) -> tuple[list[Answer], list[Answer]]:
    if reference is None:
        return [], []
    if files.images is not None and not multimodal:
        raise SurgeryError(WHERE, "need an output with a vision tower for images, got a text-only one")
    prompts = PROMPTS if files.prompts is None else read_prompts(files.prompts)
    passages = [] if files.images is None else read_passages(files.images)
    shown = [passage for passage in passages if passage.image is not None][: files.answers]
    prompts = prompts[: files.answers]
    progress.begin(2 * (len(prompts) + len(shown)))
    try:
        return ask_both(
            reference.path,
            files.folder,
            prompts,
            shown,
            max_tokens=files.max_tokens,
            advance=progress.advance,
        )
    finally:
        progress.finish()


def _scripts(checkpoint: Checkpoint) -> dict[str, int]:
    return tokens_by_script(checkpoint.path) if TOKENIZER in checkpoint.side_files else {}


def _is_remote(reference: str) -> bool:
    return is_repo_id(reference) and not Path(reference).is_dir()


def _name(reference: str) -> str:
    """A repository id as it is, of a path the folder: where it lies is nobody's business."""
    return reference if _is_remote(reference) else PurePath(reference).name or reference


def _license(folder: Path) -> str:
    """What the front matter of the original's model card says; empty if it says nothing."""
    if not (folder / README).is_file():
        return ""
    text = read_small_file(folder / README, where=WHERE).decode("utf-8", "replace")
    parts = text.split("---", 2)
    match = _LICENSE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return match[1] if match else ""
