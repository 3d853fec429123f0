"""`demo`: make a small model, compress it, verify it, show what happened. No network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.cli import options
from gemma_surgery.cli.console import megabytes, out, print_json, print_table
from gemma_surgery.cli.plan import print_steps, summary
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.families.tiny import tiny_model, write_tokenizer
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import stored_bytes
from gemma_surgery.surgery.executor import execute
from gemma_surgery.synthesis import synthesis_plan
from gemma_surgery.verification import verify

# `mobile`, scaled to 8 layers and 224 pixels.
SCALED = ("drop_layers.last=2", "reduce_resolution.image_size=168", "prune_neurons.protect_first=2")

Keep = Annotated[
    Path | None, typer.Option("--output", "-o", help="Keep the folders here; default: a temporary folder.")
]


def command(output: Keep = None, json: options.Json = False) -> None:
    """Compress a small random-weight Gemma 3 with `mobile` scaled to it, and verify every byte."""
    if output is not None:
        _demo(output, json)
        return
    with tempfile.TemporaryDirectory(prefix="gemma-surgery-demo-") as folder:
        _demo(Path(folder), json)


def _demo(folder: Path, json: bool) -> None:
    source, target = folder / "original", folder / "mobile"
    write_tokenizer(folder / "tokenizer")
    execute(synthesis_plan("tiny", tiny_model(), folder / "tokenizer"), source, overwrite=True)
    original = open_checkpoint(source)
    plan = make_plan(original, load_recipe("mobile", SCALED))
    outcome = execute(plan, target, overwrite=True)
    verdict = verify(target, original)
    if json:
        print_json({**summary(plan), "seconds": round(outcome.seconds, 3), "verify": verdict.to_json()})
    else:
        print_steps(plan, plan.seconds_by_step(outcome.tensor_seconds, outcome.phase_seconds))
        _print_components(original, open_checkpoint(target))
        for check in verdict.checks:
            out().print(f"verified: {check}")
        for problem in verdict.problems:
            out().print(f"problem: {problem}")
        out().print("weights are random: the demo shows bytes and proofs, not answers")
    if not verdict.ok:
        raise typer.Exit(1)


def _print_components(before: Checkpoint, after: Checkpoint) -> None:
    sizes = [_component_bytes(checkpoint) for checkpoint in (before, after)]
    rows = [
        (
            part,
            megabytes(sizes[0][part]),
            megabytes(sizes[1].get(part, 0)),
            f"{sizes[1].get(part, 0) / size:.0%}",
        )
        for part, size in sizes[0].items()
    ]
    total = [sum(size.values()) for size in sizes]
    rows.append(("total", megabytes(total[0]), megabytes(total[1]), f"{total[1] / total[0]:.0%}"))
    print_table(
        "", [("component", "left"), ("before MB", "right"), ("after MB", "right"), ("", "right")], rows
    )


def _component_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    family = Gemma3(checkpoint.config)
    sizes: dict[str, int] = {}
    for matrix in logical_matrices(checkpoint).values():
        part = family.component(matrix.name)
        sizes[part] = sizes.get(part, 0) + stored_bytes(matrix.name, matrix.shape, matrix.encoding)
    return sizes
