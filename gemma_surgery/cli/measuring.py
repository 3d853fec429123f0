"""The profile that a recipe asks for, made beside the output where none is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.cli.console import CountProgress, remarks
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.checkpoint.model_folder import Checkpoint
    from gemma_surgery.recipes.recipe import Recipe

# Gemma-Prune took as many prompts; the kinds of passages alternate.
PASSAGES, MAX_TOKENS = 20, 128
WITHOUT = "decide by weights instead with `--no-measure`"

Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="Profile MODEL first, to OUTPUT.profile, if the recipe asks for it and no profile is given.",
    ),
]


def with_profile(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Recipe:
    """The recipe with a profile, if it asks for one: its own, else `OUTPUT.profile`, made now if need be.

    Args:
        checkpoint: the original.
        recipe: what is wanted.
        output: what the profile is named after.
        resume: use the profile that is there, or go on with an interrupted measurement.
        quiet: no progress.

    Raises:
        SurgeryError: it cannot be made, or something else has its name.
    """
    from gemma_surgery.calibration.calibrate import calibrate
    from gemma_surgery.calibration.passages import calibration_passages, passages_sha256

    if recipe.profile is not None or not recipe.measure:
        return recipe
    path = output.with_name(f"{output.name}.profile")
    passages = calibration_passages()[:PASSAGES]
    with _hint(WITHOUT):
        known = known_profile(path)
        wanted = (checkpoint.fingerprint, passages_sha256(passages))
        if not (resume and known == wanted):
            _make_folder(path.parent)
            remarks().print(f"measuring what the neurons of {checkpoint.path.name} do: {path}")
            progress = CountProgress("profiling", quiet)
            calibrate(checkpoint, passages, path, max_tokens=MAX_TOKENS, resume=resume, progress=progress)
    return replace(recipe, profile=str(path))


def known_profile(path: Path) -> tuple[str | None, str | None] | None:
    """Checkpoint and data of the profile that is there; None for no file, an error for another one."""
    from gemma_surgery.calibration.profile import DATA_KEY, FINGERPRINT_KEY
    from gemma_surgery.checkpoint.header import read_header

    if not path.exists():
        return None
    metadata = read_header(path).metadata
    if FINGERPRINT_KEY not in metadata:
        raise SurgeryError("profile", f"need a free name for the profile, got another file in `{path}`")
    return metadata[FINGERPRINT_KEY], metadata.get(DATA_KEY)


def _make_folder(folder: Path) -> None:
    """The folder that the output will lie in, as `compress` makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurgeryError("profile", f"cannot create `{folder}`: {os_reason(error)}") from None


@contextmanager
def _hint(hint: str) -> Iterator[None]:
    try:
        yield
    except SurgeryError as error:
        both = f"{error.hint}; or {hint}" if error.hint else hint
        raise SurgeryError(error.where, error.message, both) from None
