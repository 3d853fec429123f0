from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_surgery.generation.repetition import MAX_PERIOD, MIN_TIMES, MIN_TOKENS, LoopDetector, Repetition


def by_definition(tokens: Sequence[int]) -> Repetition | None:
    """Try every period on the whole tail."""
    for period in range(1, MAX_PERIOD + 1):
        length = min(period, len(tokens))
        while length < len(tokens) and tokens[-length - 1] == tokens[-length - 1 + period]:
            length += 1
        if length >= MIN_TOKENS and length >= MIN_TIMES * period:
            return Repetition(period, length // period, len(tokens) - length)
    return None


def first_alarm(tokens: Sequence[int]) -> int | None:
    detector = LoopDetector()
    return next((i for i, token in enumerate(tokens) if detector.add(token) is not None), None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=70),
    st.integers(0, 5),
    st.integers(0, 69),
)
def test_the_detector_agrees_with_trying_every_period(
    prefix: list[int], phrase: list[int], times: int, extra: int
) -> None:
    tokens = prefix + phrase * (times * 150 // len(phrase) if times > 2 else times) + phrase[:extra]
    detector = LoopDetector()
    for end, token in enumerate(tokens, start=1):
        found = detector.add(token)
        if end % 7 == 0 or end == len(tokens):
            assert found == by_definition(tokens[:end])


@pytest.mark.parametrize("period", [1, 2, 3, 8, 31, 32, 33, 63, 64])
def test_a_loop_is_reported_as_soon_as_it_is_long_enough(period: int) -> None:
    prefix = list(range(1000, 1037))
    tokens = prefix + list(range(period)) * 400
    needed = max(MIN_TOKENS, MIN_TIMES * period)
    assert first_alarm(tokens) == len(prefix) + needed - 1


def test_the_shortest_period_start_and_whole_times_are_reported() -> None:
    detector = LoopDetector()
    for token in [9, 8, 7] + [1, 2, 3] * 50 + [1]:
        detector.add(token)
    assert detector.longest == Repetition(period=3, times=50, start=3)


def test_the_longest_loop_is_remembered_after_the_text_left_it() -> None:
    detector = LoopDetector()
    for token in [5] * 200 + list(range(100, 400)) + [6, 7] * 70:
        detector.add(token)
    assert detector.longest == Repetition(period=1, times=200, start=0)


def test_a_phrase_longer_than_the_longest_period_is_no_loop() -> None:
    assert first_alarm(list(range(MAX_PERIOD + 1)) * 8) is None


def words(text: str) -> list[int]:
    """Tokens much finer than a real tokenizer's: a word, a space or a sign each."""
    import re

    return [hash(piece) for piece in re.findall(r"\w+|\s|[^\w\s]", text)]


HONEST = {
    "numbered list": "".join(f"{n}. Take the next item and write it down.\n" for n in range(1, 60)),
    "table": "| Name | Done | Left |\n|------|------|------|\n"
    + "".join(f"| item {n} | yes | no |\n" for n in range(40)),
    "wide table rule": "|" + "---|" * 30 + "\n",
    "indentation": "\n".join(" " * 24 + f"value_{n} = compute({n})" for n in range(40)),
    "rule": "Title\n" + "=" * 100 + "\nText",
    "zero matrix": "[" + ", ".join("[0, 0, 0, 0, 0]" for _ in range(5)) + "]",
    "chorus": "Row, row, row your boat, gently down the stream. " * 3,
    "dot leaders": "Introduction " + "." * 100 + " 3\nMethods " + "." * 105 + " 17\n",
    "code": "".join(f"    if (x == {n}) {{\n        return {n * n};\n    }}\n" for n in range(30)),
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_text_raises_no_alarm(kind: str) -> None:
    assert first_alarm(words(HONEST[kind])) is None


DEGENERATE = {
    "one word": "very " * 200,
    "a sentence": "I am sorry, I cannot do that for you right now. " * 30,
    "a growing answer": "The circle is red. " + "It is left of the square. " * 40,
    "empty lines": "The end." + "\n" * 200,
    "equal table rows": "| a | b |\n" * 40,
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_text_raises_an_alarm(kind: str) -> None:
    assert first_alarm(words(DEGENERATE[kind])) is not None
