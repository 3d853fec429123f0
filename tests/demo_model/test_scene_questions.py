"""Questions about scenes have the one right answer."""

import random

import pytest

from gemma_surgery.demo_model.questions import (
    NUMBER_WORDS,
    QUESTION_KINDS,
    answer_is_right,
    question,
    questions,
    two_image_turn,
)
from gemma_surgery.demo_model.scenes import COLOURS, POSITIONS, SHAPES, Scene, Thing, random_scene

SCENE = Scene((Thing(0, "red", "circle"), Thing(4, "blue", "circle"), Thing(8, "red", "star")))


def all_of(kind, scene, count=200):
    rng = random.Random(kind)
    return [turn for turn in (question(kind, scene, rng) for _ in range(count)) if turn is not None]


def words_in(text, words):
    return [word for word in words if word in text.lower()]


def test_a_color_is_asked_of_a_unique_shape_only():
    turns = all_of("color", SCENE)
    assert {turn.answer for turn in turns} == {"Red."}
    assert all("star" in turn.prompt for turn in turns)


def test_a_shape_is_asked_of_a_unique_color_only():
    turns = all_of("shape", SCENE)
    assert {turn.answer for turn in turns} == {"The circle."}
    assert all("blue" in turn.prompt for turn in turns)


def test_ambiguous_scenes_have_no_such_question():
    twins = Scene((Thing(0, "red", "circle"), Thing(1, "red", "circle")))
    assert all_of("color", twins) == all_of("shape", twins) == all_of("where", twins) == []


def test_where_names_the_position_of_the_thing_asked_for():
    for turn in all_of("where", SCENE):
        named = [thing for thing in SCENE.things if thing.shape in turn.prompt]
        colours = words_in(turn.prompt, COLOURS)
        if colours:
            named = [thing for thing in named if thing.colour in colours]
        assert [POSITIONS[thing.cell] for thing in named] == [turn.answer[:-1].lower()]


def test_counting_and_emptiness():
    assert {turn.answer for turn in all_of("count", SCENE)} == {"Three."}
    for turn in all_of("position", SCENE):
        position = max(words_in(turn.prompt, POSITIONS), key=len)
        expected = {POSITIONS[t.cell]: f"{t.phrase[0].upper()}{t.phrase[1:]}." for t in SCENE.things}
        assert turn.answer == expected.get(position, "Nothing.")


def test_existence_is_asked_with_both_answers():
    turns = all_of("exists", SCENE)
    present = {(thing.colour, thing.shape) for thing in SCENE.things}
    for turn in turns:
        pair = (words_in(turn.prompt, COLOURS)[0], words_in(turn.prompt, SHAPES)[0])
        assert turn.answer == ("Yes." if pair in present else "No.")
    assert 0.3 < sum(turn.answer == "Yes." for turn in turns) / len(turns) < 0.7


def test_a_conversation_repeats_no_question():
    rng = random.Random(1)
    for _ in range(50):
        turns = questions(random_scene(rng), rng, 5)
        assert len(turns) == 5
        assert len({turn.prompt for turn in turns}) == 5


def test_two_images_are_told_apart():
    rng = random.Random(2)
    kinds = set()
    for _ in range(200):
        first, second = random_scene(rng), random_scene(rng)
        turn = two_image_turn(first, second, rng)
        kinds.add(turn.kind)
        if turn.kind == "which_image":
            phrase = turn.prompt.removeprefix("Which image shows ").removesuffix("?")
            shown = {"first": first, "second": second}
            ordinals = [name for name, scene in shown.items() if phrase in {t.phrase for t in scene.things}]
            assert ordinals == [turn.answer.split()[1]]
    assert kinds == {"which_image", "describe_one"}


def test_an_answer_is_right_to_the_letter_only():
    assert answer_is_right(" Three.\n", "Three.")
    assert not answer_is_right("three.", "Three.")
    assert not answer_is_right("Three. And more.", "Three.")


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_one_seed_asks_one_question(kind):
    assert question(kind, SCENE, random.Random(9)) == question(kind, SCENE, random.Random(9))


def test_number_words_cover_every_count():
    assert NUMBER_WORDS[3] == "Three"
    assert len(NUMBER_WORDS) > 9
