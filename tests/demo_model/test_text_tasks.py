"""Text tasks: right answers, deterministic, and a split that no wording crosses."""

import random
import re

import pytest

from gemma_surgery.demo_model.phrases import LANGUAGES
from gemma_surgery.demo_model.questions import NUMBER_WORDS
from gemma_surgery.demo_model.scenes import COLOURS, SHAPES
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, TASK_KINDS, random_task
from gemma_surgery.demo_model.words import DAYS, MONTHS, OPPOSITES


def tasks_of(kind, count=150, split="train"):
    rng = random.Random(f"{kind} {split}")
    return [random_task(rng, kind, split) for _ in range(count)]


def numbers_in(text):
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_no_input_is_on_both_sides_of_the_split(kind):
    train = {task.key for task in tasks_of(kind, 1500)}
    held_out = {task.key for task in tasks_of(kind, 300, "held_out")}
    assert not train & held_out
    assert len(held_out) >= 8


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_one_key_has_one_answer_and_several_wordings(kind):
    answers, prompts = {}, {}
    for task in tasks_of(kind, 1500):
        # Single opposites share a key that keeps them all on the training side.
        if task.key != "any word":
            assert answers.setdefault(task.key, task.answer) == task.answer
        prompts.setdefault(task.prompt.split(" ")[0], task)
    assert len(prompts) >= 2 or kind == "counting"


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_one_seed_gives_one_task(kind):
    assert random_task(random.Random(1), kind) == random_task(random.Random(1), kind)


def test_only_translation_needs_more_than_ascii():
    for kind in TASK_KINDS:
        is_ascii = all((task.prompt + task.answer).isascii() for task in tasks_of(kind))
        assert is_ascii == (kind in ENGLISH_KINDS)


def test_word_lists_are_answered_from_the_list():
    for task in tasks_of("repeat"):
        assert task.prompt.endswith(task.answer)
    for task in tasks_of("reverse"):
        assert task.answer.split(", ") == task.key.split(", ")[::-1]
    for task in tasks_of("pick"):
        ordinal, words = task.key.split(" of ")
        assert task.answer == words.split(", ")[0 if ordinal == "first" else -1]
    for task in tasks_of("count"):
        assert task.answer == f"{NUMBER_WORDS[len(task.key.split(', '))]}."


def test_membership_is_asked_with_both_answers():
    tasks = tasks_of("contains")
    for task in tasks:
        word, words = task.key.split(" in ")
        assert task.answer == ("Yes." if word in words.split(", ") else "No.")
    assert 0.3 < sum(task.answer == "Yes." for task in tasks) / len(tasks) < 0.7


def test_arithmetic_is_right():
    for task in tasks_of("sum"):
        assert int(task.answer) == sum(numbers_in(task.prompt))
    for task in tasks_of("next_number"):
        assert [int(task.answer) - 1] == numbers_in(task.prompt)
    for task in tasks_of("bigger"):
        best = max if "bigger" in task.prompt else min
        assert int(task.answer) == best(numbers_in(task.prompt))
    for task in tasks_of("counting"):
        start, stop = numbers_in(task.prompt)
        assert numbers_in(task.answer) == list(range(start, stop + 1))


def test_calendar_wraps_around():
    for task in tasks_of("calendar", 300):
        asked_day = next(day for day in DAYS if day in task.prompt)
        asked_month = next(month for month in MONTHS if month in task.prompt)
        day, month = task.answer[:-1].split(" and ")
        step = 1 if "after" in task.prompt else -1
        assert DAYS.index(day) == (DAYS.index(asked_day) + step) % 7
        assert MONTHS.index(month) == (MONTHS.index(asked_month) + step) % 12


def test_opposites_go_both_ways():
    both = dict(OPPOSITES) | {second: first for first, second in OPPOSITES}
    assert len(both) == 2 * len(OPPOSITES)
    assert random_task(random.Random(0), "opposites").answer
    for task in tasks_of("opposites"):
        asked = re.sub(r".*(?::| of) ", "", task.prompt).rstrip("?").split(", ")
        assert [both[word] for word in asked] == task.answer.split(", ")


def test_every_language_has_a_phrase_for_every_color_and_shape():
    for language in LANGUAGES:
        phrases = {language.phrase(colour, shape) for colour in COLOURS for shape in SHAPES}
        assert len(phrases) == len(COLOURS) * len(SHAPES), language.name


@pytest.mark.parametrize(
    ("name", "colour", "shape", "phrase"),
    [
        ("French", "green", "star", "étoile verte"),
        ("French", "green", "circle", "cercle vert"),
        ("German", "red", "square", "rotes Quadrat"),
        ("German", "white", "star", "weißer Stern"),
        ("Russian", "blue", "star", "синяя звезда"),
        ("Greek", "red", "star", "κόκκινο αστέρι"),
        ("Japanese", "yellow", "square", "黄色い四角"),
        ("Hindi", "black", "star", "काला तारा"),
    ],
)
def test_colors_agree_with_their_nouns(name, colour, shape, phrase):
    language = next(language for language in LANGUAGES if language.name == name)
    assert language.phrase(colour, shape) == phrase
