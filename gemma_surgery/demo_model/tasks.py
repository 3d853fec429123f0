"""Text tasks with one right answer, on inputs of which a tenth is never trained on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gemma_surgery.demo_model.phrases import LANGUAGES
from gemma_surgery.demo_model.questions import NUMBER_WORDS, answer_is_right
from gemma_surgery.demo_model.scenes import COLOURS, SHAPES
from gemma_surgery.demo_model.split import Split, is_held_out
from gemma_surgery.demo_model.words import ADJECTIVES, DAYS, MONTHS, NOUNS, OPPOSITES

_OPPOSITE = dict(OPPOSITES) | {second: first for first, second in OPPOSITES}
_WORDS = NOUNS + ADJECTIVES


@dataclass(frozen=True)
class Task:
    """One question and its answer.

    Attributes:
        kind: one of `TASK_KINDS`.
        key: the input without the wording; it decides the split.
        prompt: what the user writes.
        answer: what the model should answer, to the letter.
    """

    kind: str
    key: str
    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """Whether `text` is the answer, surrounding white space aside."""
        return answer_is_right(text, self.answer)


def random_task(rng: random.Random, kind: str | None = None, split: Split = "train") -> Task:
    """A task of `kind` (default: any) whose input belongs to `split`."""
    kind = kind or rng.choice(TASK_KINDS)
    while True:
        key, prompts, answer = _MAKERS[kind](rng)
        if is_held_out(f"{kind}: {key}") == (split == "held_out"):
            return Task(kind, key, rng.choice(prompts), answer)


_Made = tuple[str, tuple[str, ...], str]


def _list(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(_WORDS, rng.randint(low, high))


def _repeat(rng: random.Random) -> _Made:
    words = ", ".join(_list(rng, 2, 5))
    return words, (f"Repeat: {words}", f"Say this again: {words}", f"Repeat these words: {words}"), words


def _reverse(rng: random.Random) -> _Made:
    items = _list(rng, 2, 4)
    words = ", ".join(items)
    prompts = (f"Reverse: {words}", f"Reverse the list: {words}", f"Say these words backwards: {words}")
    return words, prompts, ", ".join(reversed(items))


def _pick(rng: random.Random) -> _Made:
    items = _list(rng, 2, 5)
    words = ", ".join(items)
    ordinal, answer = rng.choice((("first", items[0]), ("last", items[-1])))
    prompts = (
        f"What is the {ordinal} word? {words}",
        f"Say the {ordinal} word: {words}",
        f"Which word is {ordinal} in this list? {words}",
    )
    return f"{ordinal} of {words}", prompts, answer


def _count(rng: random.Random) -> _Made:
    items = _list(rng, 1, 6)
    words = ", ".join(items)
    prompts = (
        f"How many words? {words}",
        f"Count the words: {words}",
        f"How many words are in this list? {words}",
    )
    return words, prompts, f"{NUMBER_WORDS[len(items)]}."


def _contains(rng: random.Random) -> _Made:
    items = _list(rng, 3, 5)
    words = ", ".join(items)
    word = rng.choice(items) if rng.random() < 0.5 else rng.choice(_WORDS)
    prompts = (f'Is "{word}" in this list? {words}', f'Do you see "{word}" here? {words}')
    return f"{word} in {words}", prompts, "Yes." if word in items else "No."


def _opposites(rng: random.Random) -> _Made:
    items = rng.sample(sorted(_OPPOSITE), rng.randint(1, 3))
    words = ", ".join(items)
    # Single words are all there are to learn from: they are never held out alone.
    key = words if len(items) > 1 else "any word"
    prompts = (f"Opposites: {words}", f"Say the opposite: {words}", f"What is the opposite of {words}?")
    return key, prompts, ", ".join(_OPPOSITE[item] for item in items)


def _next_number(rng: random.Random) -> _Made:
    number = rng.randint(0, 99) if rng.random() < 0.3 else rng.randint(0, 998)
    prompts = (f"What comes after {number}?", f"Next number: {number}", f"Which number follows {number}?")
    return str(number), prompts, f"{number + 1}"


def _bigger(rng: random.Random) -> _Made:
    high = rng.choice((9, 99, 999))
    first, second = rng.sample(range(high + 1), 2)
    if rng.random() < 0.5:
        adjective, answer = "bigger", max(first, second)
    else:
        adjective, answer = "smaller", min(first, second)
    prompts = (
        f"Which number is {adjective}, {first} or {second}?",
        f"Which is {adjective}: {first} or {second}?",
        f"Say the {adjective} number: {first}, {second}",
    )
    return f"{adjective} {first} {second}", prompts, f"{answer}"


def _sum(rng: random.Random) -> _Made:
    first, second = rng.randint(0, 99), rng.randint(0, 9)
    prompts = (f"What is {first} + {second}?", f"{first} + {second} =", f"Add {second} to {first}.")
    return f"{first} + {second}", prompts, f"{first + second}"


def _calendar(rng: random.Random) -> _Made:
    day, month = rng.randrange(7), rng.randrange(12)
    word, step = rng.choice((("after", 1), ("before", -1)))
    answer = f"{DAYS[(day + step) % 7]} and {MONTHS[(month + step) % 12]}."
    prompts = (
        f"Which day is {word} {DAYS[day]} and which month is {word} {MONTHS[month]}?",
        f"What comes {word} {DAYS[day]} and {word} {MONTHS[month]}?",
    )
    return f"{word} {day} {month}", prompts, answer


def _counting(rng: random.Random) -> _Made:
    start = rng.randint(0, 94)
    stop = start + rng.randint(2, 5)
    numbers = ", ".join(str(number) for number in range(start, stop + 1))
    return f"{start} to {stop}", (f"Count from {start} to {stop}.", f"Count: {start} to {stop}"), numbers


def _translate(rng: random.Random) -> _Made:
    language, colour, shape = rng.choice(LANGUAGES), rng.choice(COLOURS), rng.choice(SHAPES)
    prompts = (
        f"Translate to {language.name}: {colour} {shape}",
        f'How do you say "{colour} {shape}" in {language.name}?',
        f"What is {colour} {shape} in {language.name}?",
    )
    return f"{language.name} {colour} {shape}", prompts, language.phrase(colour, shape)


_MAKERS: dict[str, Callable[[random.Random], _Made]] = {
    "repeat": _repeat,
    "reverse": _reverse,
    "pick": _pick,
    "count": _count,
    "contains": _contains,
    "opposites": _opposites,
    "next_number": _next_number,
    "bigger": _bigger,
    "sum": _sum,
    "calendar": _calendar,
    "counting": _counting,
    "translate": _translate,
}
TASK_KINDS = tuple(_MAKERS)
# The kinds that a vocabulary cut to English can still answer.
ENGLISH_KINDS = tuple(kind for kind in TASK_KINDS if kind != "translate")
