"""`eval`: how far a checkpoint is from its original, and what it can still do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, megabytes, out, print_json, print_table
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.quality.contractions import Contractions
    from gemma_surgery.quality.images import AgreementReport, SceneReport
    from gemma_surgery.quality.results import Divergence, Evaluation
    from gemma_surgery.quality.statistics import Estimate
    from gemma_surgery.quality.step_costs import StepCost

# From here on decimals say nothing.
MANY = 10_000
_COLUMNS = [("", "left"), ("", "right")]

Reference = Annotated[
    str | None, typer.Option("--reference", help="The original: folder or repository id to compare with.")
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text, JSONL or image folder to read; default: built-in passages."),
]
Samples = Annotated[
    int, typer.Option("--samples", min=1, help="Passages, or chunks of raw text, and images at most.")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-m", min=8, help="Tokens of a passage at most, or of a chunk.")
]
Images = Annotated[
    str | None,
    typer.Option("--images", help="Folder of images to describe; `scenes`: drawn ones, for the demo model."),
]
Tasks = Annotated[
    Path | None, typer.Option("--tasks", help="JSONL with `prompt` and `answer`; default: built-in ones.")
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        help="Leave out `divergence`, `contractions`, `repetition`, `tasks` or `images`. May be repeated.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Keep what the reference expects in this file; it is run once then."),
]
Steps = Annotated[
    bool,
    typer.Option(
        "--steps",
        help="Also after each step of the recipe that made MODEL of the reference: made, compared, removed.",
    ),
]


def command(
    model: options.Model,
    reference: Reference = None,
    calibration: Calibration = None,
    samples: Samples = 32,
    max_tokens: MaxTokens = 512,
    images: Images = None,
    tasks: Tasks = None,
    skip: Skip = None,
    cache: Cache = None,
    steps: Steps = False,
    profile: options.UsedProfile = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Measure divergence from the original, perplexity, repetition, contractions, tasks and images."""
    from gemma_surgery.calibration.passages import read_passages
    from gemma_surgery.checkpoint.model_folder import open_checkpoint
    from gemma_surgery.quality.evaluation import evaluate
    from gemma_surgery.quality.step_costs import recipe_behind

    if profile is not None and not steps:
        raise SurgeryError(
            "eval", "need `--steps` with `--profile`, got none", "nothing else takes a profile"
        )
    if steps and reference is None:
        raise SurgeryError("eval", "need `--reference` with `--steps`, got none", "name the original model")
    checkpoint = open_checkpoint(model)
    original = None if reference is None else open_checkpoint(reference)
    recipe = recipe_behind(checkpoint, original, profile) if steps and original is not None else None
    passages = None if calibration is None else read_passages(calibration)
    found = evaluate(
        checkpoint,
        original,
        passages,
        samples=samples,
        max_tokens=max_tokens,
        images=images,
        tasks=tasks,
        skip=tuple(skip or ()),
        cache=cache,
        recipe=recipe,
        progress=lambda phase: CountProgress(phase, quiet),
    )
    if json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    out().print(f"model: {found.model}")
    if found.reference is not None:
        out().print(f"reference: {found.reference}")
    if found.protocol is not None:
        out().print(f"protocol: {found.protocol.describe()}")
    if found.divergence is not None:
        _print_divergence(found, found.divergence)
    elif found.perplexity is not None:
        title = f"{found.positions:,} tokens scored"
        print_table(title, _COLUMNS, [["perplexity", _shown(found.perplexity)]])
    if found.steps is not None:
        _print_steps(found.steps)
    rows = _answer_rows(found)
    if rows:
        print_table("", [("", "left"), ("model", "right"), ("reference", "right")], rows)
    if found.contractions is not None:
        for text in found.contractions.wrong():
            out().print(f"note: a wrong form is likelier than `{text}`")
    for form in sorted(set(found.impossible_forms or ())):
        out().print(f"note: the model wrote `{form}`")
    for note in found.notes:
        out().print(f"note: {note}")
    out().print("time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in found.seconds.items()))


def _print_divergence(found: Evaluation, measured: Divergence) -> None:
    kld, ppl, vocabulary = measured.kld, measured.perplexities, measured.vocabulary
    bound = ", a lower bound: the reference is cached" if measured.is_lower_bound else ""
    rows = [
        ["mean KL divergence, nats", _shown(kld.mean)],
        ["  maximum", f"{kld.maximum:.6f}"],
        *(
            ["  median" if percent == 50 else f"  {percent:g} %", f"{value:.6f}"]
            for percent, value in kld.percentiles.items()
        ),
        ["  minimum", f"{kld.minimum:.6f}"],
        ["same top token", _percent(measured.same_top)],
        ["perplexity of the model", _shown(ppl.candidate)],
        ["perplexity of the reference", _shown(ppl.reference)],
        ["  ratio", _shown(ppl.ratio)],
        ["  difference", _shown(ppl.difference)],
        ["  ln of the ratio", _shown(ppl.log_ratio)],
        ["  correlation of the logarithms", f"{ppl.correlation:.2%}"],
        ["change of the right token's probability", _percent(measured.probabilities.delta_p.mean)],
        ["  root mean square", _percent(measured.probabilities.rms)],
    ]
    print_table(f"{found.positions:,} places scored{bound}", _COLUMNS, rows)
    if vocabulary.respelled or vocabulary.without_piece:
        out().print(
            f"vocabulary: {vocabulary.respelled:,} tokens of the reference are written in pieces, "
            f"{vocabulary.without_piece:,} cannot be; they held {vocabulary.lost_mass:.2e} of the "
            f"probability, {vocabulary.worst_lost_mass:.2e} at worst"
        )
    if any((vocabulary.unmatched_reference, vocabulary.unmatched_candidate)):
        out().print(
            f"not compared: {vocabulary.unmatched_reference:,} tokens of the reference and "
            f"{vocabulary.unmatched_candidate:,} of the model begin where the other has no boundary"
        )
    if vocabulary.impossible:
        out().print(
            f"impossible: in {vocabulary.impossible:,} places the text needs a token that the model lacks; "
            "its perplexity leaves them out"
        )


def _print_steps(steps: Sequence[StepCost]) -> None:
    rows = []
    for cost in steps:
        measured, figures = cost.divergence, ["unchanged", "", ""]
        if measured is not None:
            kld = measured.kld
            figures = [_shown(kld.mean), f"{kld.percentiles[99.0]:.4f}", f"{measured.same_top.value:.2%}"]
        rows.append([f"{cost.number} {cost.step}", *figures, megabytes(cost.size_bytes)])
    columns = [
        ("after step", "left"),
        ("mean KL, nats", "right"),
        ("99 %", "right"),
        ("same top", "right"),
        ("MB", "right"),
    ]
    print_table("what the recipe costs step by step", columns, rows)


def _answer_rows(found: Evaluation) -> list[list[str]]:
    rows: list[list[str]] = []
    if found.contractions is not None:
        mine, its = found.contractions, found.contractions_reference

        def shown(one: Contractions | None, kind: str) -> str:
            if one is None:
                return ""
            return f"{one.share:.1%}" if kind == "share" else f"{one.log_odds:.2f}"

        title = f"right contractions, of {len(mine.margins)}"
        rows.append([title, shown(mine, "share"), shown(its, "share")])
        rows.append(["  log-odds, nats", shown(mine, "odds"), shown(its, "odds")])
    if found.repetition is not None:
        loops = found.repetition
        rows.append([f"loops, in {len(loops.continuations)} continuations", f"{loops.rate:.1%}", ""])
        rows.append(["  tokens of the longest", f"{loops.longest_tokens:,}", ""])
    if found.impossible_forms is not None:
        rows.append(["  contractions such as `I's`", f"{len(found.impossible_forms):,}", ""])
    if found.tasks is not None:
        rows.append([f"tasks right, of {len(found.tasks.right)}", f"{found.tasks.share:.1%}", ""])
    if found.images is not None:
        rows += _image_rows(found.images, found.images_reference)
    return rows


def _image_rows(mine: SceneReport | AgreementReport, its: SceneReport | None) -> list[list[str]]:
    measured = mine.to_json()
    share = "" if mine.share is None else f"{mine.share:.1%}"
    if measured["kind"] == "facts":
        return [[f"facts right, in {measured['images']} scenes", share, f"{its.share:.1%}" if its else ""]]
    rows = [[f"loops, in descriptions of {measured['images']} images", f"{measured['loops']}", ""]]
    if share:
        rows.insert(0, ["agreement with the reference's descriptions", share, ""])
        rows[-1][-1] = f"{measured['loops_reference']}"
    return rows


def _shown(estimate: Estimate) -> str:
    digits = 6 if abs(estimate.value) < MANY else 0
    return f"{estimate.value:,.{digits}f} ± {estimate.stderr:,.{digits}f}"


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.3%} ± {estimate.stderr:.3%}"
