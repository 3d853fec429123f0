"""What error compensation is worth on the small trained model, by how many tokens the profile was made of.

Usage: ``python bench/solve_quality.py [--tasks 400] [--bits 2 3 4] [--seed 1]``. Prints a Markdown table.

Each figure is a mean divergence from the bf16 model on held-out tasks, over that of the same candidate
without compensation: every down_proj rounded, at two group sizes together, and a quarter of every layer's
neurons removed. Below 1, compensation helps. Most of a mean comes from one place in a hundred, so that other
seeds give figures that differ by a third and more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_surgery.calibration.calibrate import calibrate
from gemma_surgery.calibration.profile import read_profile
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.demo_model.task_passages import task_passages
from gemma_surgery.families.gemma3 import DOWN_PROJ, Gemma3
from gemma_surgery.quality.referee import Referee
from gemma_surgery.recipes.recipe import Recipe, make_plan
from gemma_surgery.steps.base import Step
from gemma_surgery.steps.prune_neurons import PruneNeurons
from gemma_surgery.steps.quantize import Quantize, Rule

CALIBRATION_TASKS = (43, 85, 250, 500, 1000, 2000)
GROUP_SIZES = (64, 128)
RULES = (Rule(f"{DOWN_PROJ}.weight"), Rule("*", keep=True))


@dataclass(frozen=True)
class Bench:
    """The model, its judge, and the profile at hand."""

    source: Checkpoint
    referee: Referee
    profile: Path

    def divergence(self, name: str, step: Step) -> float:
        """Of the model after one step."""
        recipe = Recipe(name, "", ((name, step),), str(self.profile))
        return self.referee.judge_plan(make_plan(self.source, recipe)).kld.mean.value

    def rounded(self, bits: int, *, compensated: bool) -> float:
        """The sum over group sizes, of every down_proj rounded."""
        total = 0.0
        for size in GROUP_SIZES:
            step = Quantize(bits, size, rules=RULES, method="compensated" if compensated else "round")
            total += self.divergence("quantize", step)
        return total

    def pruned(self, *, compensated: bool) -> float:
        """Of every layer without a quarter of its neurons."""
        step = PruneNeurons(
            protect_first=0,
            structure="layers",
            scores="wifv",
            compensation="columns" if compensated else "none",
        )
        return self.divergence("prune_neurons", step)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks to measure on")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="of the rounded matrices")
    parser.add_argument("--calibration", type=int, nargs="+", default=CALIBRATION_TASKS, help="tasks")
    parser.add_argument("--seed", type=int, default=1, help="of the tasks that are drawn")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    source = open_checkpoint(demo_model_path("bf16"))
    held_out = task_passages("held_out", options.tasks, seed=1000 + options.seed)
    columns = Gemma3(source.config).mlp_widths[0]
    titles = [f"{bits} bits" for bits in options.bits]
    print(f"| tokens per column | {' | '.join(titles)} | a quarter of the neurons |")
    print("|---" * (len(titles) + 2) + "|", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(source, Referee(source, held_out, samples=options.tasks), Path(name) / "profile")
        rounded: dict[int, float] = {}
        for tasks in options.calibration:
            calibrate(
                source, task_passages("train", tasks, options.seed), bench.profile, hessians=[DOWN_PROJ]
            )
            if not rounded:
                rounded = {bits: bench.rounded(bits, compensated=False) for bits in options.bits}
            row = {
                title: bench.rounded(bits, compensated=True) / rounded[bits]
                for title, bits in zip(titles, options.bits, strict=True)
            }
            row["neurons"] = bench.pruned(compensated=True) / bench.pruned(compensated=False)
            tokens = read_profile(bench.profile, source.fingerprint).num_tokens / columns
            rows.append({"tokens_per_column": tokens, **row})
            print(f"| {tokens:.1f} | {' | '.join(f'{value:.2f}' for value in row.values())} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
