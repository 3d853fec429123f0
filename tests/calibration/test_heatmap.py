"""The heatmap: sizes, order and colours in text and as a picture."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_surgery.calibration.heatmap import (
    COLOURS,
    HIGHEST,
    LABEL_PIXELS,
    LOWEST,
    PICTURE_COLUMNS,
    ROW_PIXELS,
    SHADES,
    TEXT_COLUMNS,
    picture,
    text_rows,
)

RNG = np.random.default_rng(4)
# More and fewer neurons than columns, and a count that no bin divides.
WIDTHS = (10_240, 512, 31, 7, 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_row_has_one_shade_per_column_from_most_to_least_active(width: int) -> None:
    (row,) = text_rows([10.0 ** RNG.uniform(-3, 2, width)])
    assert len(row) == TEXT_COLUMNS
    assert [SHADES.index(shade) for shade in row] == sorted(map(SHADES.index, row), reverse=True)


def test_text_rows_are_in_the_order_of_layers() -> None:
    rows = text_rows([np.full(64, HIGHEST), np.full(64, LOWEST), np.full(64, (LOWEST * HIGHEST) ** 0.5)])
    assert rows == [SHADES[-1] * TEXT_COLUMNS, SHADES[0] * TEXT_COLUMNS, SHADES[2] * TEXT_COLUMNS]


def test_silent_and_overflowing_neurons_get_the_outer_shades() -> None:
    assert text_rows([np.zeros(5), np.full(5, 1e9)]) == [" " * TEXT_COLUMNS, "█" * TEXT_COLUMNS]


def test_the_picture_has_a_row_per_layer_and_room_for_labels_and_scale() -> None:
    image = picture([np.ones(512)] * 9, 0.5)
    assert image.size == (LABEL_PIXELS + PICTURE_COLUMNS + 10, 9 * ROW_PIXELS + 30)


def test_the_picture_shows_layers_from_the_top_and_neurons_from_the_left() -> None:
    bright, dark = np.full(100, HIGHEST), np.full(100, LOWEST)
    pixels = np.asarray(picture([bright, dark, np.concatenate([dark, bright])], 1e-9))
    middle = [layer * ROW_PIXELS + ROW_PIXELS // 2 for layer in range(3)]
    left, right = LABEL_PIXELS + 5, LABEL_PIXELS + PICTURE_COLUMNS - 10
    assert tuple(pixels[middle[0], left]) == tuple(pixels[middle[0], right]) == COLOURS[-1]
    assert tuple(pixels[middle[1], left]) == tuple(pixels[middle[1], right]) == COLOURS[0]
    assert tuple(pixels[middle[2], left]) == COLOURS[-1] and tuple(pixels[middle[2], right]) == COLOURS[0]


def test_the_tick_is_where_a_layer_falls_below_the_threshold() -> None:
    values = np.concatenate([np.full(75, 2.0), np.full(25, 0.1)])
    pixels = np.asarray(picture([values, np.full(100, 2.0)], 0.5))
    tick = LABEL_PIXELS + round(0.75 * (PICTURE_COLUMNS - 1))
    assert tuple(pixels[ROW_PIXELS // 2, tick]) == (255, 255, 255)
    assert tuple(pixels[ROW_PIXELS // 2, tick - 4]) != (255, 255, 255)
    assert tuple(pixels[ROW_PIXELS + ROW_PIXELS // 2, tick]) != (255, 255, 255)
