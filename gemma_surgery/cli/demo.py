"""`demo`: compress the small trained model that ships with the package, and ask it before and after."""

from __future__ import annotations

import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, megabytes, out, print_json, print_table
from gemma_surgery.cli.measuring import measure_beside
from gemma_surgery.cli.plan import print_step_table, summary
from gemma_surgery.demo_model import SCALED, demo_model_path
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.executor import execute
from gemma_surgery.verification import verify

if TYPE_CHECKING:
    from gemma_surgery.demo_model.accuracy import Accuracy
    from gemma_surgery.generation.image_file import ImageSource
    from gemma_surgery.generation.stream import Generated

CALIBRATION_TASKS = 40
SEED = 7
SHOWN_CHARACTERS = 90

Keep = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Keep the compressed folder, and beside it the profile; default: nowhere."
    ),
]
Scenes = Annotated[int, typer.Option(min=1, help="Unseen scenes that each checkpoint describes.")]
Tasks = Annotated[int, typer.Option(min=1, help="Unseen text tasks that each checkpoint solves.")]


def command(
    output: Keep = None,
    scenes: Scenes = 12,
    tasks: Tasks = 22,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a small trained Gemma 3 with `mobile` scaled to it; ask both, and verify every byte."""
    if output is not None:
        _demo(output, scenes, tasks, json, quiet)
        return
    with tempfile.TemporaryDirectory(prefix="gemma-surgery-demo-") as folder:
        _demo(Path(folder) / "mobile", scenes, tasks, json, quiet)


@dataclass(frozen=True)
class Examined:
    """A checkpoint, what it said and how it did.

    Attributes:
        text_bytes: weights in memory that text needs.
        description: of the image.
        answer: to the task.
        prompt_rate: tokens per second, median over all prompts.
        rate: of generation, tokens per second, median over all answers.
    """

    name: str
    checkpoint: Checkpoint
    text_bytes: int
    description: str
    answer: str
    accuracy: Accuracy
    prompt_rate: float
    rate: float

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "name": self.name,
            "size_bytes": self.checkpoint.size_bytes,
            "text_bytes": self.text_bytes,
            "description": self.description,
            "answer": self.answer,
            "facts": self.accuracy.fact_share,
            "tasks": self.accuracy.task_share,
            "prompt_tps": self.prompt_rate,
            "generation_tps": self.rate,
        }


def _demo(target: Path, scenes: int, tasks: int, json: bool, quiet: bool) -> None:
    from gemma_surgery.demo_model.questions import DESCRIBE
    from gemma_surgery.demo_model.scenes import caption, random_scene, render
    from gemma_surgery.demo_model.task_passages import task_passages
    from gemma_surgery.demo_model.tasks import random_task

    original = open_checkpoint(demo_model_path("bf16"))
    passages = task_passages("train", CALIBRATION_TASKS, SEED)
    profile = measure_beside(original, passages, target, overwrite=True, quiet=quiet or json)
    plan = make_plan(original, load_recipe("mobile", SCALED, profile))
    execute(plan, target, overwrite=True)
    verdict = verify(target, original)

    scene = random_scene(random.Random(SEED), 2, split="held_out")
    task = random_task(random.Random(SEED), "reverse", split="held_out")
    shown = DESCRIBE[0], render(scene), task.prompt
    progress = CountProgress("asking", quiet or json)
    progress.begin(3 * (scenes + tasks))
    examined = [
        _examine(name, checkpoint, shown, (scenes, tasks), progress)
        for name, checkpoint in (
            ("original, bf16", original),
            ("4-bit", open_checkpoint(demo_model_path("4bit"))),
            ("mobile", open_checkpoint(target)),
        )
    ]
    progress.finish()
    if json:
        candidates = [one.to_json() for one in examined]
        print_json({**summary(plan), "checkpoints": candidates, "verify": verdict.to_json()})
    else:
        print_step_table(plan, {})
        _print_answers(f"an image of: {caption(scene)}", DESCRIBE[0], [one.description for one in examined])
        _print_answers("a text", task.prompt, [one.answer for one in examined])
        _print_measurements(examined)
        for problem in verdict.problems:
            out().print(f"problem: {problem}")
        if verdict.ok:
            out().print(f"verified: every one of {verdict.tensors} tensors derived again from the original")
    if not verdict.ok:
        raise typer.Exit(1)


def _examine(
    name: str,
    checkpoint: Checkpoint,
    shown: tuple[str, ImageSource, str],
    counts: tuple[int, int],
    progress: CountProgress,
) -> Examined:
    """Ask a checkpoint about one image and one text, then everything that is counted."""
    from gemma_surgery.demo_model.accuracy import ask, measure_accuracy
    from gemma_surgery.generation.loading import load

    model, tokenizer = load(checkpoint.path)
    question, image, text = shown
    said = ask(model, tokenizer, question, [image]).text, ask(model, tokenizer, text).text
    answers: list[Generated] = []

    def on_answer(answer: Generated) -> None:
        answers.append(answer)
        progress.advance(1)

    accuracy = measure_accuracy(model, tokenizer, *counts, on_answer=on_answer)
    return Examined(
        name,
        checkpoint,
        model.text_bytes,
        *said,
        accuracy,
        statistics.median(answer.prompt_tps for answer in answers),
        statistics.median(answer.generation_tps for answer in answers),
    )


def _print_answers(title: str, question: str, answers: list[str]) -> None:
    out().print(f"\n{title}\n  > {question}")
    for name, answer in zip(("original", "4-bit", "mobile"), answers, strict=True):
        out().print(f"  {name:9} {_one_line(answer)}")


def _one_line(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def _print_measurements(examined: list[Examined]) -> None:
    def row(label: str, cells: list[str]) -> list[str]:
        return [label, *cells]

    first = examined[0]
    facts, tasks = first.accuracy.facts[1], first.accuracy.tasks[1]
    rows = [
        row("weights, MB", [megabytes(one.checkpoint.size_bytes) for one in examined]),
        row(
            "of the original",
            [f"{one.checkpoint.size_bytes / first.checkpoint.size_bytes:.0%}" for one in examined],
        ),
        row("prompt tokens per second", [f"{one.prompt_rate:,.0f}" for one in examined]),
        row("generated tokens per second", [f"{one.rate:,.0f}" for one in examined]),
        row(
            f"facts right, of {facts} in unseen images",
            [f"{one.accuracy.fact_share:.1%}" for one in examined],
        ),
        row(f"tasks right, of {tasks} unseen ones", [f"{one.accuracy.task_share:.1%}" for one in examined]),
    ]
    print_table("", [("", "left"), *((one.name, "right") for one in examined)], rows)
