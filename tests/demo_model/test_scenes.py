"""Scenes: deterministic, disjoint splits, drawn as described, scored so that guessing costs."""

import random

import numpy as np
import pytest

from gemma_surgery.demo_model.drawing import BACKGROUND_RANGE, BACKGROUND_TINT, TONE_JITTER, TONES
from gemma_surgery.demo_model.scenes import (
    COLOURS,
    IMAGE_SIZE,
    POSITIONS,
    SHAPES,
    Scene,
    Thing,
    caption,
    claims,
    random_scene,
    render,
    score_description,
)

RED_CIRCLE, BLUE_STAR = Thing(0, "red", "circle"), Thing(4, "blue", "star")
TWO = Scene((RED_CIRCLE, BLUE_STAR), look=7)


def test_one_seed_gives_one_scene_and_one_image():
    first, second = (random_scene(random.Random(3), 3) for _ in range(2))
    assert first == second
    assert np.array_equal(np.asarray(render(first)), np.asarray(render(second)))
    assert first != random_scene(random.Random(4), 3)


def test_look_changes_the_image_but_not_the_content():
    other = Scene(TWO.things, look=8)
    assert other.key == TWO.key
    assert not np.array_equal(np.asarray(render(other)), np.asarray(render(TWO)))


def test_no_scene_is_on_both_sides_of_the_split():
    rng = random.Random(0)
    train = {random_scene(rng, split="train").key for _ in range(3000)}
    held_out = {random_scene(rng, split="held_out").key for _ in range(3000)}
    assert not train & held_out
    assert len(held_out) > 1000


def test_a_tenth_of_the_single_things_is_held_out_in_every_position():
    from gemma_surgery.demo_model.split import is_held_out

    keys = {
        cell: [Scene((Thing(cell, colour, shape),)).key for colour in COLOURS for shape in SHAPES]
        for cell in range(len(POSITIONS))
    }
    held_out = {cell: sum(map(is_held_out, members)) for cell, members in keys.items()}
    assert 20 <= sum(held_out.values()) <= 52
    assert all(count < 20 for count in held_out.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_things_have_cells_of_their_own_in_reading_order(count):
    rng = random.Random(count)
    for _ in range(50):
        cells = [thing.cell for thing in random_scene(rng, count).things]
        assert cells == sorted(set(cells))
        assert len(cells) == count


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("cell", range(len(POSITIONS)))
def test_the_pixels_of_a_thing_lie_in_its_cell(colour, cell):
    for shape in SHAPES:
        pixels = np.asarray(render(Scene((Thing(cell, colour, shape),), look=cell))).astype(int)
        background = pixels[0, 0] if cell else pixels[-1, -1]
        painted = np.abs(pixels - background).max(-1) > 2 * BACKGROUND_TINT
        rows, columns = np.nonzero(painted)
        row, column = divmod(cell, 3)
        side = IMAGE_SIZE / 3
        assert row * side - 1 <= rows.min() and rows.max() <= (row + 1) * side + 1
        assert column * side - 1 <= columns.min() and columns.max() <= (column + 1) * side + 1
        inside = pixels[painted]
        near = (np.abs(inside - np.array(TONES[colour])) <= TONE_JITTER).all(-1)
        assert near.mean() > 0.8


def test_the_background_keeps_off_black_and_white():
    low, high = BACKGROUND_RANGE[0] - BACKGROUND_TINT, BACKGROUND_RANGE[1] + BACKGROUND_TINT
    assert max(TONES["black"]) + TONE_JITTER < low
    assert min(TONES["white"]) - TONE_JITTER > high


def test_a_caption_names_every_fact_once_in_reading_order():
    assert caption(TWO) == "There is a red circle at the top left and a blue star in the center."
    assert claims(caption(TWO)) == list(TWO.facts)
    assert caption(Scene((Thing(1, "orange", "cross"),))) == "There is an orange cross at the top."


def test_captions_of_random_scenes_score_full_marks():
    rng = random.Random(5)
    for _ in range(200):
        scene = random_scene(rng)
        assert score_description(caption(scene), scene) == (len(scene.things), len(scene.things))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", (0, 2)),
        ("There is a red circle at the top left.", (1, 2)),
        ("A blue star in the center; a red circle at the top left!", (2, 2)),
        ("There is a red circle at the top left and a red star in the center.", (1, 3)),
        ("There is a red circle at the top and a blue star in the center.", (1, 3)),
        ("There is a blue circle at the top left and a red star in the center.", (0, 4)),
        (caption(TWO)[:-1] + " and a white cross on the right.", (2, 3)),
        ("A red circle at the top left, a red circle at the top left and a blue star in the center.", (2, 3)),
        ("There is a circle and a star.", (0, 4)),
    ],
)
def test_hallucinated_and_incomplete_things_cost(text, score):
    assert score_description(text, TWO) == score


def test_naming_everything_everywhere_scores_almost_nothing():
    everything = ", ".join(f"{c} {s} {p}" for c in COLOURS for s in SHAPES for p in POSITIONS)
    right, total = score_description(everything, TWO)
    assert right == 2
    assert total == len(COLOURS) * len(SHAPES) * len(POSITIONS)


def test_the_longest_position_is_read():
    assert claims("a red cross at the bottom right") == [("red", "cross", "at the bottom right")]
    assert claims("a red cross at the bottom.") == [("red", "cross", "at the bottom")]
