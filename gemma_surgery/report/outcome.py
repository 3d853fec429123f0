"""What was done to the output folder and what became of its bytes: from the manifest and the headers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import MANIFEST_NAME, Checkpoint, open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.report.fields import WHERE, Fields
from gemma_surgery.surgery.manifest import read_manifest

COMPONENTS = ("text layers", "embedding", "output head", "vision tower", "projector", "other")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Step:
    """One step of the recipe and what it did to the bytes."""

    name: str
    saved_bytes: int
    added_bytes: int
    lossless: bool
    notes: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    profile_sha256: str | None


@dataclass(frozen=True)
class Outcome:
    """A finished output.

    Attributes:
        checkpoint: the folder.
        recipe_name: of the preset or the file.
        recipe_toml: the recipe with every parameter, as a file that `compress --recipe` takes.
        before: tensor bytes of the source by component; empty for manifests that do not say.
        after: tensor bytes of the output by component.
        num_tensors: stored tensors of the output.
        exact_tensors: those whose values are exactly values of the source.
        hashes: sha256 of every side file.
    """

    checkpoint: Checkpoint
    recipe_name: str
    recipe_toml: str
    steps: tuple[Step, ...]
    source_bytes: int
    output_bytes: int
    before: dict[str, int]
    after: dict[str, int]
    num_tensors: int
    exact_tensors: int
    plan_sha256: str
    source_fingerprint: str
    source_files: dict[str, int]
    hashes: dict[str, str]
    version: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.checkpoint.path.resolve().name

    @property
    def step_names(self) -> tuple[str, ...]:
        """Steps in the order of the recipe."""
        return tuple(step.name for step in self.steps)


def read_outcome(folder: Path) -> Outcome:
    """Read the manifest and the headers of an output folder; no weights.

    Raises:
        SurgeryError: not a finished output, or a malformed manifest.
    """
    checkpoint = open_checkpoint(folder)
    if not (folder / MANIFEST_NAME).is_file():
        raise SurgeryError(
            WHERE,
            f"need a `{MANIFEST_NAME}` in `{folder}`, got none",
            "give a folder that `gemma-surgery compress` wrote",
        )
    manifest = Fields(read_manifest(checkpoint), f"`{MANIFEST_NAME}`")
    family = Gemma3(checkpoint.config)
    source, recipe = _object(manifest, "source"), _object(manifest, "recipe")
    tensors = _object(manifest, "tensors")
    after: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        _add(after, family.component(tensor.name), tensor.size_bytes)
    before: dict[str, int] = {}
    modules = source.part("module_bytes")
    for module in modules.values if modules else ():
        _add(before, family.component(f"{module}.weight"), _whole(modules, module))  # type: ignore[arg-type]
    return Outcome(
        checkpoint=checkpoint,
        recipe_name=recipe.text("name") or "",
        recipe_toml=recipe_as_toml(recipe.values),
        steps=tuple(_step(each) for each in manifest.parts("steps")),
        source_bytes=_whole(source, "tensor_bytes"),
        output_bytes=_whole(manifest, "tensor_bytes"),
        before=_ordered(before),
        after=_ordered(after),
        num_tensors=len(tensors.values),
        exact_tensors=sum(
            isinstance(entry, dict) and entry.get("lossless") is True for entry in tensors.values.values()
        ),
        plan_sha256=manifest.text("plan_sha256") or "",
        source_fingerprint=source.text("fingerprint") or "",
        source_files=_sizes(source.part("files")),
        hashes=_texts(_object(manifest, "files")),
        version=manifest.text("gemma_surgery_version") or "",
    )


def recipe_as_toml(recipe: Mapping[str, Json]) -> str:
    """A manifest's recipe as a TOML file."""
    lines = [f"profile = {_toml(recipe['profile'])}\n"] if recipe.get("profile") is not None else []
    steps = recipe.get("steps")
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict):
            lines.append("[[steps]]")
            lines += [f"{_key(key)} = {_toml(value)}" for key, value in step.items() if value is not None]
            lines.append("")
    return "\n".join(lines).strip() + "\n"


def _toml(value: Json) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items() if each is not None)
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else '"not a number"'
    # A JSON string is a TOML string, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False).replace("\x7f", "\\u007f")


def _step(fields: Fields) -> Step:
    table: list[tuple[str, ...]] = []
    rows = fields.values.get("table")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list):
            table.append(tuple(str(cell) for cell in row))
    return Step(
        fields.text("step") or "",
        _whole(fields, "saved_bytes"),
        _whole(fields, "added_bytes"),
        fields.flag("lossless"),
        fields.texts("notes"),
        tuple(table),
        fields.text("profile_sha256"),
    )


def _object(fields: Fields, key: str) -> Fields:
    found = fields.part(key)
    assert found is not None
    return found


def _whole(fields: Fields, key: str) -> int:
    value = fields.integer(key)
    return value if value is not None else int(fields.needed(key))


def _sizes(fields: Fields | None) -> dict[str, int]:
    return {key: _whole(fields, key) for key in fields.values} if fields else {}


def _texts(fields: Fields) -> dict[str, str]:
    return {key: fields.text(key) or "" for key in fields.values}


def _add(total: dict[str, int], key: str, amount: int) -> None:
    total[key] = total.get(key, 0) + amount


def _ordered(sizes: dict[str, int]) -> dict[str, int]:
    return {name: sizes[name] for name in COMPONENTS if name in sizes}
