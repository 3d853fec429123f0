"""Questions with one right answer, answered greedily."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.checkpoint.json_types import Json, JsonProblem, decode_object, read_small_file
from gemma_surgery.checkpoint.wording import brief
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.stream import generate

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

WHERE = "tasks"
BUILT_IN = "tasks.jsonl"
MAX_ANSWER_TOKENS = 64

_MARKUP = re.compile(r"[*_`\"“”]|\\boxed|[${}]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class ExactTask:
    """One question.

    Attributes:
        prompt: the user's turn.
        answers: what counts as right; several where several spellings are.
    """

    prompt: str
    answers: tuple[str, ...]

    def is_right(self, text: str) -> bool:
        """Whether `text` is one of the answers; case, markup, spacing and a final full stop aside."""
        return normalized(text) in {normalized(answer) for answer in self.answers}


@dataclass(frozen=True)
class TaskReport:
    """Answers to tasks.

    Attributes:
        right: per task, whether it was answered.
        answers: what was answered.
    """

    right: tuple[bool, ...]
    answers: tuple[str, ...] = field(repr=False)

    @property
    def share(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"right": sum(self.right), "total": len(self.right), "share": self.share}


def normalized(text: str) -> str:
    """An answer without what does not matter: case, markup, spacing, a final full stop."""
    plain = _SPACE.sub(" ", _MARKUP.sub("", text)).strip().casefold()
    return plain.rstrip(".!").rstrip().replace(", ", ",")


@cache
def built_in_tasks() -> tuple[ExactTask, ...]:
    """Return the tasks that ship with the package: what any instruction-tuned Gemma should know."""
    return read_tasks(Path(__file__).with_name(BUILT_IN))


def read_tasks(path: Path) -> tuple[ExactTask, ...]:
    """Read tasks from a file with a JSON object per line: `prompt`, and `answer` as a string or several.

    Raises:
        SurgeryError: no tasks, not UTF-8, or a line of another form, which is named.
    """
    tasks: list[ExactTask] = []
    for number, line in enumerate(read_small_file(path, where=WHERE).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"line {number} of `{path.name}`"
        try:
            document = decode_object(line)
        except JsonProblem as problem:
            raise SurgeryError(WHERE, f"{place} {problem}") from None
        prompt, answer = document.get("prompt"), document.get("answer")
        answers = answer if isinstance(answer, list) else [answer]
        if not isinstance(prompt, str) or not prompt.strip():
            raise SurgeryError(WHERE, f"need a text as `prompt`, got {_shown(prompt)} in {place}")
        texts = [each for each in answers if isinstance(each, str) and normalized(each)]
        if not texts or len(texts) != len(answers):
            raise SurgeryError(
                WHERE, f"need a text or a list of texts as `answer`, got {_shown(answer)} in {place}"
            )
        tasks.append(ExactTask(prompt, tuple(texts)))
    if not tasks:
        raise SurgeryError(WHERE, f"need at least one task, got none in `{path}`")
    return tuple(tasks)


def solve(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    tasks: Sequence[ExactTask],
    advance: Callable[[int], None] = lambda done: None,
) -> TaskReport:
    """Let a model answer every task, each in a conversation of its own.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        tasks: at least one.
        advance: called with 1 after each answer.
    """
    answers: list[str] = []
    for task in tasks:
        prompt = build_prompt(tokenizer, model.config, task.prompt)
        room = MAX_ANSWER_TOKENS + max(len(tokenizer.encode(answer)) for answer in task.answers)
        answers.append(generate(model, tokenizer, prompt, max_tokens=room).text)
        advance(1)
    right = tuple(task.is_right(answer) for task, answer in zip(tasks, answers, strict=True))
    return TaskReport(right, tuple(answers))


def _shown(value: Json) -> str:
    return "nothing" if value is None else brief(value)
