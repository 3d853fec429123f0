"""Short cuts for tests that compress a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.families.published import Published
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.executor import execute
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.synthesis import synthesis_plan

# `mobile` for the toy model of 8 layers and 224 pixels.
SCALED = ("drop_layers.last=2", "reduce_resolution.image_size=168", "prune_neurons.protect_first=2")


def plan_recipe(source: Path, recipe: str = "mobile", overrides: tuple[str, ...] = SCALED) -> Plan:
    return make_plan(open_checkpoint(source), load_recipe(recipe, overrides))


def plan_steps(source: Path, tmp_path: Path, toml: str) -> Plan:
    """Plan a recipe given as TOML text."""
    path = tmp_path / "recipe.toml"
    path.write_text(toml, "utf-8")
    return make_plan(open_checkpoint(source), load_recipe(str(path)))


def compress_steps(source: Path, tmp_path: Path, toml: str, threads: int = 2) -> Path:
    target = tmp_path / "output"
    execute(plan_steps(source, tmp_path, toml), target, threads=threads, overwrite=True)
    return target


def headers_only(folder: Path, name: str, model: Published, tokenizer: Path | None) -> Path:
    """A checkpoint of full size whose weights are a hole in a sparse file: enough to plan."""
    plan = synthesis_plan(name, model, tokenizer)
    folder.mkdir(parents=True)
    for file in plan.files:
        with (folder / file.name).open("wb") as stream:
            stream.write(file.header)
            stream.truncate(file.size_bytes)
    for document, data in plan.documents.items():
        (folder / document).write_bytes(data)
    for copied in plan.copied:
        (folder / copied).symlink_to((plan.source.path / copied).resolve())
    return folder


def folder_hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))
