"""`compress`: plan, execute, verify, report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.checkpoint.target import Places, check_beforehand, check_separate
from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, TransferProgress, out, print_json, remarks
from gemma_surgery.cli.measuring import Measure, check_plan, with_profile
from gemma_surgery.cli.memory import PeakMemory
from gemma_surgery.cli.plan import print_steps, print_warnings, summary
from gemma_surgery.errors import SurgeryError
from gemma_surgery.recipes.recipe import Recipe, load_recipe, make_plan
from gemma_surgery.surgery.executor import Outcome, execute
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.verification import check_structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.quality.guard import Limit
    from gemma_surgery.quality.step_costs import StepCost

Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same recipe.")]
Guard = Annotated[
    str | None,
    typer.Option("--guard", help="Measure after every step and act when a limit is passed: kl=0.05 (nats)."),
]
GuardAction = Annotated[
    Literal["stop", "skip"],
    typer.Option("--guard-action", help="Stop before anything is written, or leave the step out."),
]
GuardSamples = Annotated[int, typer.Option("--guard-samples", min=1, help="Texts that the guard scores.")]
GuardTexts = Annotated[
    Path | None,
    typer.Option("--guard-texts", help="Texts or JSONL that the guard scores; default: built-in, held out."),
]
Stages = Annotated[
    bool,
    typer.Option(
        "--stages", help="Also write the checkpoint after every step: OUTPUT.1-step, OUTPUT.2-step, ..."
    ),
]


def command(
    model: options.Model,
    output: options.Output,
    recipe: options.RecipeName = "mobile",
    overrides: options.Overrides = None,
    profile: options.Profile = None,
    measure: Measure = True,
    revision: options.Revision = None,
    resume: Resume = False,
    overwrite: options.Overwrite = False,
    stages: Stages = False,
    guard: Guard = None,
    guard_action: GuardAction = "stop",
    guard_samples: GuardSamples = 16,
    guard_texts: GuardTexts = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Write a smaller checkpoint in one streamed pass over the source."""
    loaded = load_recipe(recipe, overrides or (), profile)
    checkpoint = open_checkpoint(model, revision)
    check_separate(output, checkpoint.path)
    rules = None if guard is None else _rules(guard, guard_action, guard_samples, guard_texts)
    begin = time.perf_counter()
    if measure:
        check_beforehand(Places.of(output), overwrite)
        check_plan(checkpoint, loaded)
        loaded = with_profile(
            checkpoint, loaded, output, resume=resume, overwrite=overwrite, quiet=quiet or json
        )
    before: dict[str, float] = {"measuring": time.perf_counter() - begin}
    measured: dict[str, object] = {}
    if rules is not None:
        begin = time.perf_counter()
        loaded, measured = _guarded(checkpoint, loaded, rules, threads, quiet or json)
        before["guard"] = time.perf_counter() - begin
    if stages:
        for number, (step, _) in enumerate(loaded.steps[:-1], 1):
            stage = output.with_name(f"{output.name}.{number}-{step}")
            _compress(checkpoint, loaded.prefix(number), stage, resume, overwrite, threads, quiet)
            remarks().print(f"wrote {stage}")
    result = _compress(checkpoint, loaded, output, resume, overwrite, threads, quiet)
    if json:
        seconds_before = {name: round(seconds, 3) for name, seconds in before.items()}
        print_json({**result.to_json(), "seconds_before": seconds_before, **measured})
    else:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in before.items() if seconds > 1)
        if spent:
            out().print(f"before: {spent}")
        _print(result, output)


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished compression."""

    plan: Plan
    outcome: Outcome
    seconds: float
    planning_seconds: float
    peak_anonymous_bytes: int
    checks: list[str]

    def to_json(self) -> dict[str, object]:
        """The stable part of `compress --json`, and where the time went."""
        return {
            **summary(self.plan),
            "seconds": round(self.seconds, 3),
            "read_bytes": self.outcome.read_bytes,
            "written_bytes": self.outcome.written_bytes,
            "resumed_bytes": self.outcome.resumed_bytes,
            "peak_anonymous_bytes": self.peak_anonymous_bytes,
            "phase_seconds": {
                "planning": round(self.planning_seconds, 3),
                **{name: round(value, 3) for name, value in self.outcome.phase_seconds.items()},
            },
            "worker_seconds": {n: round(v, 3) for n, v in sorted(self.outcome.worker_seconds.items())},
        }


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the guard goes by."""

    limit: Limit
    action: Literal["stop", "skip"]
    samples: int
    passages: Sequence[Passage]


def _rules(limit: str, action: Literal["stop", "skip"], samples: int, texts: Path | None) -> Rules:
    from gemma_surgery.calibration.passages import held_out_passages, read_passages
    from gemma_surgery.quality.guard import Limit

    passages = held_out_passages() if texts is None else read_passages(texts)
    return Rules(Limit.parse(limit), action, samples, passages)


def _guarded(
    checkpoint: Checkpoint, recipe: Recipe, rules: Rules, threads: int | None, quiet: bool
) -> tuple[Recipe, dict[str, object]]:
    """The recipe of the steps that stay, and what was measured, for `--json`."""
    from gemma_surgery.quality.guard import guarded
    from gemma_surgery.quality.referee import Referee

    referee = Referee(
        checkpoint,
        rules.passages,
        samples=rules.samples,
        progress=lambda phase: CountProgress(f"guard, {phase}", quiet),
    )

    def tell(cost: StepCost) -> None:
        shown = "unchanged"
        if cost.divergence is not None:
            mean = cost.divergence.kld.mean
            shown = f"divergence {mean.value:.4g} +- {mean.stderr:.2g} nats"
        remarks().print(f"guard: {cost.number} {cost.step}: {shown}{'' if cost.is_kept else ', left out'}")

    kept, costs = guarded(
        checkpoint, recipe, rules.limit, referee, action=rules.action, threads=threads, on_step=tell
    )
    measured: dict[str, object] = {
        "guard": [cost.to_json() for cost in costs],
        "guard_protocol": referee.protocol.to_json(),
    }
    return kept, measured


def _compress(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    quiet: bool,
) -> Result:
    begin = time.perf_counter()
    check_separate(output, checkpoint.path)
    # Its place, whatever it is called: the working folder is another one once it was replaced.
    target = Places.of(output).target
    with PeakMemory() as memory:
        plan = make_plan(checkpoint, recipe)
        planned = time.perf_counter()
        print_warnings(plan)
        progress = TransferProgress(f"writing {output.name}", quiet)
        outcome = execute(
            plan, target, threads=threads, resume=resume, overwrite=overwrite, progress=progress
        )
        verdict = check_structure(open_checkpoint(target))
    if not verdict.ok:
        raise SurgeryError(
            "compress", f"the output is not sound: {verdict.problems[0]} ({len(verdict.problems)} problems)"
        )
    seconds = time.perf_counter() - begin
    return Result(plan, outcome, seconds, planned - begin, memory.peak_bytes, verdict.checks)


def _print(result: Result, output: Path) -> None:
    print_steps(
        result.plan, result.plan.seconds_by_step(result.outcome.tensor_seconds, result.outcome.phase_seconds)
    )
    outcome = result.outcome
    for note in outcome.notes:
        out().print(f"note: {note}")
    phases = {"planning": result.planning_seconds, **outcome.phase_seconds}
    out().print("time: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items()))
    workers = sorted(outcome.worker_seconds.items(), key=lambda item: -item[1])
    out().print("workers: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in workers))
    out().print(
        f"{result.seconds:.2f} s, read {outcome.read_bytes / 1e9:.3f} GB, "
        f"written {outcome.written_bytes / 1e9:.3f} GB, "
        f"peak anonymous memory {result.peak_anonymous_bytes / 1e6:.0f} MB"
    )
    out().print(f"verified: {'; '.join(result.checks)}")
    out().print(f"wrote {output}")
