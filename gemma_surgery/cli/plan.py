"""`plan`: what a recipe would do, exact to the byte, from headers alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli import options
from gemma_surgery.cli.console import megabytes, out, print_json, print_table, remarks, size
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.plan import Plan

Everything = Annotated[
    Path | None, typer.Option("--write", help="Write the whole plan, every tensor, as JSON.")
]


def command(
    model: options.Model,
    recipe: options.RecipeName = "mobile",
    overrides: options.Overrides = None,
    profile: options.Profile = None,
    revision: options.Revision = None,
    write: Everything = None,
    json: options.Json = False,
) -> None:
    """Show the exact bytes of every step; reads no weights and needs no output folder."""
    begin = time.perf_counter()
    loaded = load_recipe(recipe, overrides or (), profile)
    plan = make_plan(open_checkpoint(model, revision), loaded)
    if write is not None:
        import json as json_module

        write.write_text(json_module.dumps(plan.as_json, indent=1) + "\n", "utf-8")
    print_warnings(plan)
    if loaded.measure and loaded.profile is None:
        remarks().print(
            "`compress` measures first which neurons matter; here, without a profile, weights decide"
        )
    if json:
        print_json(summary(plan))
        return
    print_steps(plan, {})
    out().print(f"planned in {time.perf_counter() - begin:.2f} s, no weights read")


def summary(plan: Plan) -> dict[str, object]:
    """The stable part of `plan --json`."""
    return {
        "source_bytes": plan.source_bytes,
        "output_bytes": plan.output_bytes,
        "plan_sha256": plan.sha256,
        "steps": [step.to_json() for step in plan.steps],
    }


def print_step_table(plan: Plan, seconds: dict[str, float]) -> None:
    """One line per step; `seconds` by step, or empty."""
    rows = []
    total = plan.source_bytes
    for step in plan.steps:
        total += step.added_bytes - step.saved_bytes
        row = [
            step.step,
            megabytes(step.saved_bytes),
            megabytes(step.added_bytes) if step.added_bytes else "",
            megabytes(total),
            "exact" if step.lossless else "requantized",
        ]
        rows.append([*row, f"{seconds[step.step]:.2f}"] if seconds else row)
    columns = [
        ("step", "left"),
        ("saved MB", "right"),
        ("added MB", "right"),
        ("total MB", "right"),
        ("values", "left"),
    ]
    print_table("", [*columns, ("seconds", "right")] if seconds else columns, rows)


def print_warnings(plan: Plan) -> None:
    """What is known to fail, in plain words, before time is spent on it."""
    for step in plan.steps:
        for warning in step.warnings:
            remarks().print(f"warning: {step.step}: {warning}")


def print_steps(plan: Plan, seconds: dict[str, float]) -> None:
    """The table of steps, and what each one wants to say."""
    print_step_table(plan, seconds)
    for step in plan.steps:
        for line in step.table:
            out().print("  " + "  ".join(line))
        for note in step.notes:
            out().print(f"{step.step}: {note}")
    for requirement in plan.requirements:
        out().print(
            f"{requirement.step}: checked on the weights before anything is written: "
            f"`{requirement.first}` is bit-identical to `{requirement.second}`"
        )
    out().print(f"source {size(plan.source_bytes)}")
    share = 1 - plan.output_bytes / max(1, plan.source_bytes)
    out().print(f"output {size(plan.output_bytes)}, {share:.1%} smaller")
