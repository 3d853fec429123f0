"""The profile that a recipe asks for, made beside the output where none is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.checkpoint.target import Places
from gemma_surgery.cli.console import CountProgress, remarks
from gemma_surgery.errors import MissingProfileError, SurgeryError, SurgeryErrors
from gemma_surgery.recipes.recipe import make_plan

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
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
    overwrite: bool = False,
    quiet: bool = False,
) -> Recipe:
    """The recipe with a profile, if it asks for one: its own, else `OUTPUT.profile`, made now if need be.

    Args:
        checkpoint: the original.
        recipe: what is wanted.
        output: what the profile is named after.
        resume: go on with an interrupted measurement.
        overwrite: measure anew even if that profile is there, or one of another checkpoint.
        quiet: no progress.

    Raises:
        SurgeryError: it cannot be made, or another file has its name.
    """
    from gemma_surgery.calibration.passages import calibration_passages

    if recipe.profile is not None or not recipe.measure:
        return recipe
    if not any(hasattr(step, "profile") for _, step in recipe.steps):
        return recipe
    passages = calibration_passages()[:PASSAGES]
    with _hint(WITHOUT):
        path = measure_beside(checkpoint, passages, output, resume=resume, overwrite=overwrite, quiet=quiet)
    return replace(recipe, profile=str(path))


def measure_beside(
    checkpoint: Checkpoint,
    passages: Sequence[Passage],
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """The profile `OUTPUT.profile` of a checkpoint on passages: the one that is there, or made now.

    One that was made on other data is somebody's own, and never replaced. Arguments as for `with_profile`.

    Raises:
        SurgeryError: it cannot be made, or another file has its name.
    """
    from gemma_surgery.calibration.calibrate import calibrate
    from gemma_surgery.calibration.passages import passages_sha256

    target = Places.of(output).target
    # As it was written, where that is a name: it becomes part of the manifest.
    named = output if output.name == target.name and "~" not in str(output) else target
    path = named.with_name(f"{named.name}.profile")
    if path.exists():
        fingerprint, data = _made_of(path)
        is_own, is_ours = fingerprint == checkpoint.fingerprint, data == passages_sha256(passages)
        if not is_ours or not (is_own or overwrite):
            # Only one of this checkpoint can be used, only one that was made here be replaced.
            what = "other data" if is_own else "another checkpoint"
            way_out = "use it with `--profile`" if is_own else "replace it with `--overwrite`"
            raise SurgeryError(
                "profile",
                f"need a free name for the profile, got one of {what} in `{path}`",
                f"{way_out}, or move it away" if is_own or is_ours else "move it away",
            )
        if not overwrite:
            remarks().print(f"using what was measured before: {path}")
            return path
    _make_folder(path.parent)
    remarks().print(f"measuring what the neurons of {checkpoint.path.name} do: {path}")
    progress = CountProgress("profiling", quiet)
    calibrate(checkpoint, passages, path, max_tokens=MAX_TOKENS, resume=resume, progress=progress)
    return path


def check_plan(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse what does not fit, whatever is measured: that is not to be told after minutes of measuring.

    Raises:
        SurgeryErrors: every step that does not fit the checkpoint.
    """
    try:
        make_plan(checkpoint, recipe)
    except SurgeryErrors as errors:
        if not all(isinstance(error, MissingProfileError) for error in errors.errors):
            raise
    except MissingProfileError:
        pass


def _made_of(path: Path) -> tuple[str, str | None]:
    """Checkpoint and data of a profile."""
    from gemma_surgery.calibration.profile import DATA_KEY, FINGERPRINT_KEY
    from gemma_surgery.checkpoint.header import read_header

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
