"""The demo model's tasks as passages, to calibrate on and to score: its own kind of text."""

from __future__ import annotations

import random

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.demo_model.split import Split
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task


def task_passages(split: Split, count: int, seed: int) -> list[Passage]:
    """Prompts and answers of drawn tasks, the English kinds in turn.

    Args:
        split: `train` for calibration, `held_out` for measuring.
        count: how many.
        seed: the same one draws the same tasks.
    """
    rng = random.Random(seed)
    tasks = [
        random_task(rng, ENGLISH_KINDS[index % len(ENGLISH_KINDS)], split=split) for index in range(count)
    ]
    return [Passage(task.kind, task.prompt, task.answer) for task in tasks]
