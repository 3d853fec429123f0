"""How much a demo checkpoint still knows: unseen scenes described, unseen tasks solved, by our own engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_surgery.demo_model.questions import DESCRIBE
from gemma_surgery.demo_model.scenes import random_scene, render, score_description
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task

if TYPE_CHECKING:
    from gemma_surgery.generation.image_file import ImageSource
    from gemma_surgery.generation.stream import Generated
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

# Longer than any right answer: a loop ends here.
MAX_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of those given.

    Attributes:
        facts: colour-shape-position facts named right, and those named or to be named in all.
        tasks: exact answers, and questions.
    """

    facts: tuple[int, int]
    tasks: tuple[int, int]

    @property
    def fact_share(self) -> float:
        """Facts right, 0 to 1."""
        return self.facts[0] / self.facts[1]

    @property
    def task_share(self) -> float:
        """Tasks right, 0 to 1."""
        return self.tasks[0] / self.tasks[1]


def ask(
    model: Gemma3Model, tokenizer: Tokenizer, question: str, images: Sequence[ImageSource] = ()
) -> Generated:
    """The greedy answer to one question.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        question: one user turn.
        images: shown before it.
    """
    from gemma_surgery.generation.prompt import build_prompt
    from gemma_surgery.generation.stream import generate

    prompt = build_prompt(tokenizer, model.config, question, images)
    return generate(model, tokenizer, prompt, max_tokens=MAX_ANSWER_TOKENS)


def measure_accuracy(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    num_scenes: int,
    num_tasks: int,
    *,
    kinds: Sequence[str] = ENGLISH_KINDS,
    seed: int = 0,
    on_answer: Callable[[Generated], None] = lambda answer: None,
) -> Accuracy:
    """Let a checkpoint describe scenes and solve tasks that were held out from training.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        num_scenes: scenes of one to three things to describe.
        num_tasks: text tasks.
        kinds: of tasks, taken in turn; English ones by default, for vocabularies cut to English.
        seed: of scenes and tasks; the same seed asks every checkpoint the same.
        on_answer: called with each answer.
    """
    rng = random.Random(seed)
    facts_right = num_facts = tasks_right = 0
    for _ in range(num_scenes):
        scene = random_scene(rng, split="held_out")
        answer = ask(model, tokenizer, rng.choice(DESCRIBE), [render(scene)])
        right, total = score_description(answer.text, scene)
        facts_right, num_facts = facts_right + right, num_facts + total
        on_answer(answer)
    for index in range(num_tasks):
        task = random_task(rng, kinds[index % len(kinds)], split="held_out")
        answer = ask(model, tokenizer, task.prompt)
        tasks_right += task.is_right(answer.text)
        on_answer(answer)
    return Accuracy((facts_right, num_facts), (tasks_right, num_tasks))
