"""Is an output what it claims to be? Structure, hashes, and every value derived again from the source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import PREPROCESSOR, PROCESSOR
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.recipes.recipe import Recipe, make_plan
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.executor import rederive
from gemma_surgery.surgery.manifest import entry, read_manifest
from gemma_surgery.surgery.pool import Progress, Silent
from gemma_surgery.surgery.stream import TILE_BYTES, Buffer


@dataclass
class Verdict:
    """What verification found; `problems` is empty for a sound output.

    Attributes:
        tensors: stored tensors.
        problems: what is wrong, one sentence each.
        checks: what was checked.
        notes: what could not be checked, and what it would need.
    """

    tensors: int = 0
    problems: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Json]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "tensors": self.tensors,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def verify(
    path: Path,
    source: Checkpoint | None = None,
    progress: Progress | None = None,
    profile: Path | None = None,
) -> Verdict:
    """Check a folder written by `compress`.

    Args:
        path: the output folder.
        source: the checkpoint it was made of; if given, every tensor is derived from it once more and
            must come out with the same sha256.
        progress: where to report.
        profile: where the profile lies that the recipe used, default: where the recipe says, else beside
            the folder. Without it nothing can be derived again, which `notes` then say.

    Raises:
        SurgeryError: the folder is not an output at all, or its headers are malformed.
    """
    checkpoint = open_checkpoint(path)
    manifest = read_manifest(checkpoint)
    verdict = check_structure(checkpoint)
    _check_hashes(checkpoint, manifest, verdict, progress or Silent())
    if source is not None:
        _check_rederived(checkpoint, manifest, source, verdict, progress, profile)
    return verdict


def other_source(manifest: dict[str, Json], source: Checkpoint) -> str | None:
    """What speaks against an output being made of a checkpoint; None if nothing does."""
    recorded = entry(manifest, "source").get("fingerprint")
    if recorded == source.fingerprint:
        return None
    return (
        f"made of another checkpoint: fingerprint {str(recorded)[:12]}, "
        f"`{source.path.name}` has {source.fingerprint[:12]}"
    )


def recorded_recipe(
    output: Checkpoint, manifest: dict[str, Json], profile: Path | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe of an output, and the profiles that it names and that are not there.

    Args:
        output: what was made by it.
        manifest: its `surgery.json`.
        profile: where the profile lies that the recipe used, default: where the recipe says, else beside
            the output.

    Raises:
        SurgeryError: it is no recipe of this version.
    """
    recipe = Recipe.from_json(entry(manifest, "recipe"))

    def place(name: str) -> Path:
        beside = output.path.resolve().parent / Path(name).name
        return profile or (beside if beside.is_file() and not recipe.path(name).is_file() else Path(name))

    recipe = recipe.locate({name: place(name) for name in recipe.profiles})
    return recipe, [name for name in recipe.profiles if not recipe.path(name).is_file()]


def check_structure(checkpoint: Checkpoint) -> Verdict:
    """Check that tensors, config and side files agree, reading no weights but a token map."""
    verdict = Verdict(tensors=len(checkpoint.tensors))
    family = Gemma3(checkpoint.config)
    verdict.problems += family.problems(logical_matrices(checkpoint))
    verdict.problems += list(checkpoint.notes)
    if family.is_multimodal:
        verdict.problems += _side_file_problems(checkpoint, family)
    if family.compact_rows is not None and family.token_map in checkpoint.tensors:
        verdict.problems += _token_map_problems(checkpoint, family)
    verdict.checks.append(f"{len(checkpoint.tensors)} tensors as the config describes them")
    return verdict


def _side_file_problems(checkpoint: Checkpoint, family: Gemma3) -> list[str]:
    problems = []
    size, tokens = family.vision("image_size"), family.tokens_per_image
    for name in (PREPROCESSOR, PROCESSOR):
        if name not in checkpoint.side_files:
            continue
        document = checkpoint.json_file(name)
        stated = document.get("size")
        if isinstance(stated, dict) and set(stated.values()) != {size}:
            problems.append(f"`{name}` resizes images to {stated}, the config says {size}")
        length = document.get("image_seq_length", tokens)
        if length != tokens:
            problems.append(f"`{name}` says {length} image tokens, the config says {tokens}")
    return problems


def _token_map_problems(checkpoint: Checkpoint, family: Gemma3) -> list[str]:
    token_map = np.frombuffer(checkpoint.read(family.token_map), "<i4")
    used = token_map[token_map > 0]
    rows = family.compact_rows or 0
    if len(used) != rows - 1 or not np.array_equal(np.sort(used), np.arange(1, rows)):
        return [f"`{family.token_map}` does not use each of the rows 1 to {rows - 1} once"]
    lost = {
        key: [i for i in ids if i >= len(token_map) or token_map[i] == 0]
        for key, ids in family.token_ids(*_generation_config(checkpoint)).items()
    }
    return [f"`{key}` names the pruned token ids {ids}" for key, ids in lost.items() if ids]


def _generation_config(checkpoint: Checkpoint) -> list[dict[str, Json]]:
    name = "generation_config.json"
    return [checkpoint.json_file(name)] if name in checkpoint.side_files else []


def _check_hashes(
    checkpoint: Checkpoint, manifest: dict[str, Json], verdict: Verdict, progress: Progress
) -> None:
    recorded = entry(manifest, "tensors")
    for name in sorted(set(recorded) ^ set(checkpoint.tensors)):
        where = "the manifest" if name in recorded else "the weight files"
        verdict.problems.append(f"`{name}` is only in {where}")
    buffer = Buffer(TILE_BYTES)
    progress.begin(checkpoint.size_bytes)
    with SourceFiles(checkpoint) as files:
        for name, tensor in checkpoint.tensors.items():
            digest = hashlib.sha256()
            for start in range(0, tensor.size_bytes, TILE_BYTES):
                view = buffer.at_least(min(TILE_BYTES, tensor.size_bytes - start))
                files.read_into(tensor.file, tensor.start + start, view)
                digest.update(view)
            progress.advance(tensor.size_bytes)
            record = recorded.get(name)
            if isinstance(record, dict) and record.get("sha256") != digest.hexdigest():
                verdict.problems.append(f"`{name}` in `{tensor.file}` does not have the recorded sha256")
    progress.finish()
    for name, expected in entry(manifest, "files").items():
        path = checkpoint.path / name
        if not path.is_file():
            verdict.problems.append(f"`{name}` is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            verdict.problems.append(f"`{name}` does not have the recorded sha256")
    verdict.checks.append("sha256 of every tensor and file as recorded")


def _check_rederived(
    checkpoint: Checkpoint,
    manifest: dict[str, Json],
    source: Checkpoint,
    verdict: Verdict,
    progress: Progress | None,
    profile: Path | None,
) -> None:
    problem = other_source(manifest, source)
    if problem is not None:
        verdict.problems.append(problem)
        return
    try:
        recipe, absent = recorded_recipe(checkpoint, manifest, profile)
        if absent:
            verdict.notes.append(
                f"values derived from the source again, which needs the profile `{absent[0]}`: "
                "say where it lies with --profile"
            )
            return
        plan = make_plan(source, recipe)
    except SurgeryError as error:
        verdict.problems.append(f"the recipe cannot be planned again: {error}")
        return
    if plan.sha256 != manifest.get("plan_sha256"):
        verdict.problems.append("planning the recipe again gives another plan: a file that it names changed")
    hashes = {
        name: sha for parts in rederive(plan, progress=progress).values() for name, sha in parts.items()
    }
    recorded = entry(manifest, "tensors")
    for name, sha256 in hashes.items():
        record = recorded.get(name)
        if not isinstance(record, dict) or record.get("sha256") != sha256:
            verdict.problems.append(f"`{name}` comes out differently when derived from the source again")
    verdict.checks.append(f"{len(hashes)} tensors derived from the source again, bit for bit")
