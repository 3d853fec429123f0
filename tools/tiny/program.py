"""The command line: train, write, evaluate."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from tiny import evaluation
from tiny.anatomy import new_model
from tiny.card import write_card
from tiny.export import write_model
from tiny.phases import PHASES, VISION_STEPS
from tiny.tokenizer import write_tokenizer
from tiny.training import train
from tiny.vision_pretraining import pretrain


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    if arguments.rank is not None:
        _work(arguments.rank, arguments)
        return
    torch.set_num_threads(arguments.workers)
    if arguments.evaluate is not None:
        _evaluate(arguments.evaluate, arguments.seed)
        return
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    _train(arguments)
    minutes = _minutes_so_far(work, time.monotonic() - started)
    print(f"trained in {minutes:.0f} minutes", flush=True)
    folder = work / "bf16"
    write_model(torch.load(work / f"{PHASES[-1].stream}.pt")["model"], work / "tokenizer", folder)
    results = _evaluate(folder, arguments.seed)
    write_card(folder, results, evaluation.silent_neurons(folder, arguments.seed), arguments, minutes)


def _train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    work = arguments.work
    model = new_model()
    write_tokenizer(work / "tokenizer", arguments.seed)
    if not (work / "vision.pt").exists():
        pretrain(model, VISION_STEPS, arguments.seed, work)
    (work / "meeting").unlink(missing_ok=True)
    command = [sys.executable, *sys.argv]
    workers = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(arguments.workers)]
    if any([worker.wait() for worker in workers]):  # noqa: C419 - all of them have to be waited for
        sys.exit("a worker failed: see its traceback above")


def _work(rank: int, arguments: argparse.Namespace) -> None:
    """One worker, of one thread: a barrier per step costs less than one inside every operation."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
    work: Path = arguments.work
    meeting = f"file://{work.resolve() / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=arguments.workers)
    torch.manual_seed(arguments.seed)
    model = new_model()
    model.load_state_dict(torch.load(work / "vision.pt"), strict=False)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    for phase in PHASES:
        train(model, tokenizer, phase, arguments.seed, work)
    dist.destroy_process_group()


def _minutes_so_far(work: Path, seconds: float) -> float:
    """Wall time of this run and of those it resumed."""
    path = work / "seconds.json"
    total = seconds + (json.loads(path.read_text()) if path.exists() else 0.0)
    path.write_text(json.dumps(total))
    return total / 60


def _evaluate(folder: Path, seed: int) -> list[tuple[evaluation.Variant, evaluation.Scores]]:
    """Scores of every variant, printed; the last line is JSON."""
    cases = evaluation.held_out_cases(seed)
    results = [(variant, evaluation.evaluate(folder, variant, cases)) for variant in evaluation.VARIANTS]
    for prompt, expected, got in results[0][1].examples[:20]:
        print(f"wrong: {prompt!r} -> {got!r}, expected {expected!r}")
    last = {
        variant.name: {
            "facts": scores.fact_share,
            "scene_questions": scores.share(evaluation.SCENE_LABELS),
            "english_tasks": scores.share(evaluation.ENGLISH_LABELS),
            "translation": scores.share(evaluation.TRANSLATION_LABELS),
        }
        for variant, scores in results
    }
    print(json.dumps(last))
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model, or measure a written one.")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for the result and for state to go on from",
    )
    parser.add_argument("--evaluate", type=Path, help="a written model to measure; nothing is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; more of them is another run")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is None and arguments.evaluate is None:
        parser.error("need --work or --evaluate")
    return arguments
