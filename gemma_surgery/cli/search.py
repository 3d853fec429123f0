"""`search`: the recipe that costs least under a budget."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.checkpoint.whole_file import write_whole
from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, megabytes, out, print_json, print_table, size
from gemma_surgery.cli.measuring import Measure, with_profile
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.search.search import Found

UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}

Output = Annotated[Path, typer.Option("--output", "-o", help="The recipe to write (.toml).")]
TargetSize = Annotated[
    str | None, typer.Option("--target-size", help="Size of the tensors at most, e.g. 1.6GiB.")
]
MaxKl = Annotated[float | None, typer.Option("--max-kl", min=0.0, help="Divergence at most, in nats.")]
Data = Annotated[
    Path | None, typer.Option("--calibration", help="Texts to measure on; default: built-in ones, held out.")
]
Samples = Annotated[int, typer.Option(min=1, help="Texts that are scored at most.")]
MaxTokens = Annotated[int, typer.Option(min=8, help="Tokens per text at most.")]
Rounds = Annotated[int, typer.Option(min=0, help="Moves between layers to try around the best proposal.")]
Details = Annotated[
    Path | None, typer.Option("--details", help="Write everything measured as JSON, for `report --search`.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing recipe.")]


def command(
    model: options.Model,
    output: Output,
    target_size: TargetSize = None,
    max_kl: MaxKl = None,
    recipe: options.RecipeName = "mobile",
    overrides: options.Overrides = None,
    profile: options.Profile = None,
    measure: Measure = True,
    calibration: Data = None,
    samples: Samples = 24,
    max_tokens: MaxTokens = 256,
    rounds: Rounds = 12,
    details: Details = None,
    overwrite: Overwrite = False,
    revision: options.Revision = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what each layer and width costs, and write the recipe with the least divergence in the budget.

    What was measured is kept in OUTPUT.journal: an interrupted search goes on from there.
    """
    from gemma_surgery.calibration.passages import held_out_passages, read_passages
    from gemma_surgery.checkpoint.model_folder import open_checkpoint
    from gemma_surgery.quality.referee import Referee
    from gemma_surgery.recipes.recipe import load_recipe
    from gemma_surgery.search.journal import Journal
    from gemma_surgery.search.measuring import measuring
    from gemma_surgery.search.search import Goal, measurements, search
    from gemma_surgery.search.space import Space, toml_of

    if (target_size is None) == (max_kl is None):
        raise SurgeryError("search", "need either `--target-size` or `--max-kl`")
    if output.exists() and not overwrite:
        raise SurgeryError(
            "search", f"need a new file, got `{output}` which exists", "choose another, or add `--overwrite`"
        )
    goal = Goal(None if target_size is None else parse_size(target_size), max_kl)
    source = open_checkpoint(model, revision)
    loaded = load_recipe(recipe, overrides or (), profile)
    passages = held_out_passages() if calibration is None else read_passages(calibration)
    if measure:
        loaded = with_profile(source, loaded, output, overwrite=overwrite, quiet=quiet or json)
    referee = Referee(source, passages, samples=samples, max_tokens=max_tokens)
    space = Space(source, loaded, loaded.profile)
    journal = Journal(output.with_name(f"{output.name}.journal"), referee.identity)
    progress = CountProgress("searching", quiet or json)
    progress.begin(measurements(space, rounds))
    found = search(space, goal, measuring(space, referee, journal, threads, progress.advance), rounds)
    progress.finish()
    best = space.recipe(found.best)
    if best.profile is not None:
        # Recipe files name their neighbours relative to themselves.
        place = os.path.relpath(os.path.realpath(best.path(best.profile)), os.path.realpath(output.parent))
        best = replace(best, profile=place)
    text = toml_of(
        best,
        f"{found.best.label}: {found.measured.size_bytes:,} bytes, divergence {found.measured.kl:.4g} "
        f"+- {found.measured.stderr:.2g} nats",
    )
    write_whole(output, text, "search")
    document = {"recipe": str(output), **found.to_json(space), "protocol": referee.protocol.to_json()}
    if details is not None:
        import json as json_module

        write_whole(details, json_module.dumps(document, indent=1) + "\n", "search")
    if json:
        print_json(document)
    else:
        _print(found, output)


def parse_size(text: str) -> int:
    """Bytes of `1.6GiB`, `900 MB` or `123456`.

    Raises:
        SurgeryError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower().removesuffix("bytes") not in UNITS:
        raise SurgeryError("search", f"need a size such as `1.6GiB` or `900MB`, got `{text}`")
    return int(float(found[1]) * UNITS[found[2].lower().removesuffix("bytes")])


def _print(found: Found, output: Path) -> None:
    from gemma_surgery.search.space import PARTS

    rows = [
        [f"{layer}", *(f"{cost:+.4f}" for cost in costs)] for layer, costs in _costs_by_layer(found).items()
    ]
    parts = sorted({number for layer, number, _ in found.alone if layer >= 0})
    columns = [("layer", "right"), *((f"{number / PARTS:.0%} fewer neurons", "right") for number in parts)]
    print_table("divergence that one layer adds alone, nats", columns, rows)
    front = [
        [megabytes(found.points[point].size_bytes), f"{found.points[point].kl:.4f}", point.label]
        for point in found.front()
    ]
    print_table(
        "the front: no smaller checkpoint was closer", [("MB", "right"), ("KL", "right"), ("", "left")], front
    )
    measured = found.measured
    out().print(f"best: {found.best.label}, {size(measured.size_bytes)}")
    out().print(
        f"divergence {measured.kl:.4g} +- {measured.stderr:.2g} nats, of the base {found.base.kl:.4g}"
    )
    out().print(f"written: {output}")


def _costs_by_layer(found: Found) -> dict[int, list[float]]:
    costs: dict[int, list[float]] = {}
    for layer, _, measured in found.alone:
        if layer >= 0:
            costs.setdefault(layer, []).append(measured.kl - found.base.kl)
    return costs
