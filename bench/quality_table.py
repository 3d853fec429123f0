"""Where the quality of `mobile` comes from, on the small trained model: each improvement switched off.

Usage: ``python bench/quality_table.py [--tasks 400] [--scenes 100]``. Prints a Markdown table.

Every candidate is made of the package's 4-bit model and compared with it: divergence on held-out tasks,
facts named right in unseen images, tasks solved, answers that end in a loop. Presets are scaled to its 8
layers and 224 pixels. The failures that Gemma-Prune published (sections 5.4.1 to 5.4.3) are measured beside
them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_surgery.calibration.calibrate import calibrate
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.demo_model import SCALED, demo_model_path
from gemma_surgery.demo_model.accuracy import measure_accuracy
from gemma_surgery.demo_model.task_passages import task_passages
from gemma_surgery.families.gemma3 import DOWN_PROJ
from gemma_surgery.generation.loading import load
from gemma_surgery.generation.stream import Generated
from gemma_surgery.quality.referee import Referee
from gemma_surgery.quality.results import Divergence
from gemma_surgery.recipes.recipe import Recipe, load_recipe, make_plan
from gemma_surgery.search.journal import Journal
from gemma_surgery.search.measuring import measuring
from gemma_surgery.search.search import Goal, search
from gemma_surgery.search.space import Space
from gemma_surgery.steps.drop_vision_layers import DropVisionLayers
from gemma_surgery.steps.prune_vocabulary import PruneVocabulary
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.executor import execute

CALIBRATION_TASKS = 1000
SEARCH_TASKS = 150
MAX_TOKENS = 256
ALIKE, UNCOMPENSATED = "prune_neurons.structure=layers", "prune_neurons.compensation=none"
# Cuts every layer by the whole `max_ratio`, as `mobile` does, whatever its activations.
ACTIVATION = ("prune_neurons.scores=activation", "prune_neurons.threshold=1e9")
# What 144,257 of 262,208 rows are to the published model: the tokens of ASCII and the row of zeros.
FILL_ROWS = "prune_vocabulary.fill_rows=1206"


@dataclass(frozen=True)
class Candidate:
    """A recipe to measure: a preset, changed after the scaling, with the profile or without."""

    name: str
    preset: str = "mobile"
    changes: tuple[str, ...] = ()
    has_profile: bool = True

    def recipe(self, source: Checkpoint, profile: Path) -> Recipe:
        """The recipe for a checkpoint."""
        return load_recipe(self.preset, (*SCALED, *self.changes), profile if self.has_profile else None)


class WithoutVisionLayer(Candidate):
    """The published removal of 4 of 27 vision layers, here one of 3."""

    def recipe(self, source: Checkpoint, profile: Path) -> Recipe:
        """See `Candidate`."""
        recipe = super().recipe(source, profile)
        return replace(recipe, steps=(("drop_vision_layers", DropVisionLayers((1,))), *recipe.steps))


class Searched(Candidate):
    """What `search` finds from the recipe at no more than its bytes, on calibration tasks of its own."""

    def recipe(self, source: Checkpoint, profile: Path) -> Recipe:
        """See `Candidate`."""
        base = super().recipe(source, profile)
        budget = make_plan(source, base).output_bytes
        referee = Referee(
            source, task_passages("train", SEARCH_TASKS, seed=3), samples=SEARCH_TASKS, max_tokens=MAX_TOKENS
        )
        space = Space(source, base, base.profile)
        found = search(space, Goal(budget), measuring(space, referee, Journal(None, "")))
        return space.recipe(found.best)


class DictionaryOnly(Candidate):
    """The published vocabulary of words as a dictionary has them, without the space before them."""

    def recipe(self, source: Checkpoint, profile: Path) -> Recipe:
        """See `Candidate`."""
        words = [
            token
            for token in Draft.of(source).tokenizer().tokens
            if token is not None and token.isascii() and token.isalpha()
        ]
        listed = profile.with_name("words.json")
        listed.write_text(json.dumps(words), "utf-8")
        step = PruneVocabulary(keep=("special", "typographic"), file=str(listed))
        recipe = super().recipe(source, profile)
        steps = ((name, step if name == "prune_vocabulary" else own) for name, own in recipe.steps)
        return replace(recipe, steps=tuple(steps))


CANDIDATES = (
    Candidate("`mobile-faithful`", "mobile-faithful", (FILL_ROWS,), has_profile=False),
    Candidate("`mobile`"),
    Searched("`search` at the bytes of `mobile`"),
    Candidate("every layer cut alike", changes=(ALIKE,)),
    Candidate("no least squares", changes=(UNCOMPENSATED,)),
    Candidate("neither", changes=(ALIKE, UNCOMPENSATED)),
    Candidate("neither, scores by mean activation", changes=(ALIKE, UNCOMPENSATED, *ACTIVATION)),
    Candidate("no profile: scores by weights", has_profile=False),
    Candidate("failure: 112 of 224 pixels", changes=("reduce_resolution.image_size=112",)),
    WithoutVisionLayer("failure: one of 3 vision layers removed"),
    DictionaryOnly("failure: only words of a dictionary"),
)


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate; shares are between 0 and 1."""

    name: str
    size_bytes: int
    kl: float | None
    kl_stderr: float | None
    kl_99: float | None
    same_top: float | None
    facts: float
    tasks: float
    loops: float

    def markdown(self) -> str:
        """A line of the table."""
        divergence = "| | "
        if self.kl is not None:
            divergence = f"{self.kl:.5f} ± {self.kl_stderr:.5f} | {self.kl_99:.4f} | {self.same_top:.2%} "
        shares = f"{self.facts:.1%} | {self.tasks:.1%} | {self.loops:.1%}"
        return f"| {self.name} | {self.size_bytes:,} | {divergence}| {shares} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks to measure on")
    parser.add_argument("--scenes", type=int, default=100, help="unseen images to describe")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    source = open_checkpoint(demo_model_path("4bit"))
    held_out = task_passages("held_out", options.tasks, seed=2)
    referee = Referee(source, held_out, samples=options.tasks, max_tokens=MAX_TOKENS)
    print(
        "| | bytes | KL, nats | 99 % | same top | facts | tasks | loops |\n|---|---|---|---|---|---|---|---|"
    )
    rows = [measured("the 4-bit original", source, options.scenes, options.tasks)]
    with tempfile.TemporaryDirectory() as name:
        profile, place = Path(name) / "profile.safetensors", Path(name) / "candidate"
        calibrate(source, task_passages("train", CALIBRATION_TASKS, seed=1), profile, hessians=[DOWN_PROJ])
        for candidate in CANDIDATES:
            if options.only in candidate.name:
                execute(make_plan(source, candidate.recipe(source, profile)), place, overwrite=True)
                found = referee.judge(place)
                rows.append(
                    measured(candidate.name, open_checkpoint(place), options.scenes, options.tasks, found)
                )
    if options.json is not None:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", "utf-8")


def measured(
    name: str, checkpoint: Checkpoint, scenes: int, tasks: int, found: Divergence | None = None
) -> Row:
    """Let a checkpoint describe and answer, and print its line."""
    answers: list[Generated] = []
    model, tokenizer = load(checkpoint.path)
    accuracy = measure_accuracy(model, tokenizer, scenes, tasks, on_answer=answers.append)
    loops = sum(answer.repetition is not None for answer in answers) / len(answers)
    shares = accuracy.fact_share, accuracy.task_share, loops
    row = Row(name, checkpoint.size_bytes, None, None, None, None, *shares)
    if found is not None:
        mean, worst = found.kld.mean, found.kld.percentiles[99.0]
        row = Row(name, checkpoint.size_bytes, mean.value, mean.stderr, worst, found.same_top.value, *shares)
    print(row.markdown(), flush=True)
    return row


if __name__ == "__main__":
    main()
