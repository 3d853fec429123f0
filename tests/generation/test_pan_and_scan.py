"""Pan-and-scan: which pieces a picture is cut into."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_surgery.generation.pan_and_scan import Box, PanAndScan, expanded

SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((640, 640), []),
        # 1.2 : 1 is far enough, a pixel less is not; both need pieces of 256 pixels.
        ((600, 500), [(0, 0, 300, 500), (300, 0, 600, 500)]),
        ((599, 500), []),
        ((500, 600), [(0, 0, 500, 300), (0, 300, 500, 600)]),
        ((511, 300), [(0, 0, 256, 300), (256, 0, 511, 300)]),
        ((510, 300), []),
        ((900, 255), []),
        # 2.5 : 1 rounds up to three pieces; the last one is what is left.
        ((1000, 400), [(0, 0, 334, 400), (334, 0, 668, 400), (668, 0, 1000, 400)]),
        ((999, 400), [(0, 0, 500, 400), (500, 0, 999, 400)]),
        # At most four pieces, and none narrower than 256 pixels.
        ((9000, 300), [(left, 0, left + 2250, 300) for left in (0, 2250, 4500, 6750)]),
        ((768, 256), [(0, 0, 256, 256), (256, 0, 512, 256), (512, 0, 768, 256)]),
        ((767, 256), [(0, 0, 384, 256), (384, 0, 767, 256)]),
    ],
)
def test_pieces_of_a_picture(size: tuple[int, int], boxes: list[Box]) -> None:
    assert PanAndScan().boxes(*size) == boxes


@settings(max_examples=500, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    cut=st.builds(PanAndScan, st.integers(1, 400), st.integers(1, 9), st.floats(1.0, 3.0)),
)
def test_pieces_cover_a_picture_once_in_reading_order(width: int, height: int, cut: PanAndScan) -> None:
    boxes = cut.boxes(width, height)
    assert len(boxes) <= cut.max_num_crops
    along = 0 if width >= height else 1
    end = 0
    for box in boxes:
        assert box[along] == end
        assert (box[1 - along], box[3 - along]) == (0, (width, height)[1 - along])
        assert box[along + 2] > box[along]
        end = box[along + 2]
    assert end == ((width, height)[along] if boxes else 0)


@settings(deadline=None)
@given(width=SIDES, height=SIDES)
def test_a_picture_on_its_side_is_cut_the_same_way(width: int, height: int) -> None:
    turned = [(top, left, bottom, right) for left, top, right, bottom in PanAndScan().boxes(height, width)]
    assert PanAndScan().boxes(width, height) == turned


def test_pieces_are_announced_in_words() -> None:
    assert expanded("[]", 0) == "[]"
    assert expanded("[]", 3) == (
        "Here is the original image [] and here are some crops to help you see better [] [] []"
    )
