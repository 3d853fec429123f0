"""The model card, with the scores that were just measured."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
import transformers

from gemma_surgery.demo_model.tasks import ENGLISH_KINDS
from tiny.anatomy import CONFIG
from tiny.evaluation import (
    ENGLISH_LABELS,
    NUM_DESCRIPTIONS,
    PAIR_LABELS,
    PER_QUESTION_KIND,
    PER_TASK_KIND,
    SCENE_LABELS,
    TRANSLATION_LABELS,
    Scores,
    Variant,
)
from tiny.phases import PHASES, VISION_STEPS
from tiny.tokenizer import learned_share_not_ascii
from tiny.training import ACTIVITY_WEIGHT, SHORT_SHARES, SMALL_SHARE

TEMPLATE_FILE = Path(__file__).with_name("card_template.md")


def write_card(
    folder: Path,
    results: Sequence[tuple[Variant, Scores]],
    silent: dict[float, list[float]],
    arguments: argparse.Namespace,
    minutes: float,
) -> None:
    """Write `README.md` to `folder`."""
    pieces, foreign = learned_share_not_ascii(folder)
    weights = (folder / "model.safetensors").stat().st_size
    exact = results[0][1].exact
    weakest = sorted(exact, key=lambda label: exact[label][0] / exact[label][1])[:3]
    num_layers = CONFIG["text_config"]["num_hidden_layers"]
    card = TEMPLATE_FILE.read_text("utf-8").format(
        parameters=weights / 2e6,
        megabytes=weights / 1e6,
        text=CONFIG["text_config"],
        vision=CONFIG["vision_config"],
        tokens=CONFIG["mm_tokens_per_image"],
        pieces=pieces,
        foreign=foreign,
        foreign_share=foreign / pieces,
        english=", ".join(f"`{kind}`" for kind in ENGLISH_KINDS),
        descriptions=NUM_DESCRIPTIONS,
        per_question=PER_QUESTION_KIND,
        per_task=PER_TASK_KIND,
        scores="\n".join(_score_row(variant, scores) for variant, scores in results),
        kind_heads="|".join(f" {variant.name} " for variant, _ in results) + "|",
        kind_rules="---:|" * len(results),
        kinds="\n".join(_kind_row(kind, [scores for _, scores in results]) for kind in sorted(exact)),
        weakest=", ".join(f"{label} {exact[label][0]}/{exact[label][1]}" for label in weakest),
        vision_steps=VISION_STEPS,
        together=PHASES[0],
        polish=PHASES[1],
        small=SMALL_SHARE,
        short=sum(SHORT_SHARES.values()),
        activity=ACTIVITY_WEIGHT,
        layer_heads=" | ".join(str(layer) for layer in range(num_layers)),
        layer_rules="|".join(["---:"] * num_layers),
        silent="\n".join(
            f"| below {threshold:.0%} | " + " | ".join(f"{share:.0%}" for share in shares) + " |"
            for threshold, shares in silent.items()
        ),
        minutes=minutes,
        cpus=os.cpu_count(),
        machine=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    (folder / "README.md").write_text(card, "utf-8")


def _score_row(variant: Variant, scores: Scores) -> str:
    right, total = scores.facts
    shares = [
        scores.share(kinds) for kinds in (SCENE_LABELS, PAIR_LABELS, ENGLISH_LABELS, TRANSLATION_LABELS)
    ]
    return (
        f"| {variant.name} | {right / total:.1%} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"
    )


def _kind_row(kind: str, columns: Sequence[Scores]) -> str:
    cells = (f"{right}/{asked}" for right, asked in (scores.exact[kind] for scores in columns))
    return f"| {kind} | " + " | ".join(cells) + " |"
