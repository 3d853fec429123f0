from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from fake_model import BOS, IMAGE, IMAGE_TOKENS, A, FakeModel
from hypothesis import given
from hypothesis import strategies as st

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prefill import ImageBlock, chunk_borders, find_image_blocks, prefill

IMAGE_RUN = [IMAGE] * IMAGE_TOKENS


def pixels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)


def test_images_are_found_as_runs_of_the_image_token() -> None:
    tokens = [BOS, *IMAGE_RUN, A, *IMAGE_RUN, *IMAGE_RUN, A]
    assert find_image_blocks(FakeModel(), tokens, 3) == [(1, 4), (5, 8), (8, 11)]
    assert find_image_blocks(FakeModel(), [BOS, A], 0) == []


@pytest.mark.parametrize(
    ("tokens", "images"),
    [
        ([BOS, *IMAGE_RUN], 0),
        ([BOS, A], 1),
        ([BOS, *IMAGE_RUN], 2),
        ([BOS, *IMAGE_RUN, *IMAGE_RUN], 1),
        ([BOS, *IMAGE_RUN[1:], A], 1),
        ([BOS, IMAGE, A, IMAGE, IMAGE, A], 1),
    ],
)
def test_images_and_image_tokens_that_do_not_match_are_refused(tokens: list[int], images: int) -> None:
    with pytest.raises(SurgeryError, match=r"need \d runs of 3 image tokens for \d images, got \d"):
        find_image_blocks(FakeModel(), tokens, images)


def test_an_image_for_a_text_only_model_is_refused() -> None:
    with pytest.raises(
        SurgeryError, match="need a checkpoint with a vision tower for 1 images, got the text-only"
    ):
        find_image_blocks(FakeModel(has_vision=False), [BOS, A], 1)


@given(st.integers(1, 60), st.integers(1, 20), st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9))))
def test_no_border_is_inside_an_image(tail: int, step: int, layout: list[tuple[int, int]]) -> None:
    blocks, end = [], 0
    for gap, length in layout:
        blocks.append(ImageBlock(end + gap, end + gap + length))
        end = blocks[-1].end
    total = end + tail
    ends = chunk_borders(total, step, blocks)
    assert ends[-1] == total
    assert ends == sorted(set(ends))
    for start, stop in zip([0, *ends], ends, strict=False):
        assert not any(block.start < stop < block.end for block in blocks)
        # Longer than a step only where a single image is.
        assert stop - start <= step or ImageBlock(start, stop) in blocks
        # Shorter only before an image that would not fit, at the end, or never.
        if stop - start < step and stop != total:
            assert any(block.start == stop for block in blocks)


def test_a_prompt_in_pieces_gives_the_state_of_one_pass() -> None:
    tokens = [BOS, *[A + n % 8 for n in range(40)]]
    states = []
    for step in (1, 7, 41, 512):
        model = FakeModel()
        cache = model.make_cache()
        states.append(np.asarray(prefill(model, cache, tokens, step_size=step)).tolist())
        assert cache[0].ids == tokens
        assert max(model.passes) <= step
        assert len(model.passes) == -(-41 // step)
    assert all(state == states[0] for state in states)


def test_images_are_encoded_one_at_a_time_and_put_in_their_places() -> None:
    model = FakeModel()
    cache = model.make_cache()
    tokens = [BOS, A, *IMAGE_RUN, A, *IMAGE_RUN, A, A]
    prefill(model, cache, tokens, pixels(2), step_size=4)
    assert [call.shape for call in model.image_calls] == [(1, 2, 2, 3)] * 2
    assert [float(call.sum()) for call in model.image_calls] == [0.0, 12.0]
    assert cache[0].ids == [BOS, A, 100, 100, 100, A, 112, 112, 112, A, A]
    assert model.passes == [2, 4, 4, 1]
    assert model.seen_blocks == [None, [1, 1, 1, 0], [2, 2, 2, 0], None]


def test_an_image_longer_than_the_step_goes_whole() -> None:
    model = FakeModel()
    prefill(model, model.make_cache(), [BOS, *IMAGE_RUN, A], pixels(1), step_size=2)
    assert model.passes == [1, IMAGE_TOKENS, 1]


def test_progress_is_told_after_every_piece() -> None:
    model = FakeModel()
    seen: list[tuple[int, int]] = []
    prefill(model, model.make_cache(), [BOS] + [A] * 9, step_size=4, progress=lambda *done: seen.append(done))
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]


def test_a_step_of_nothing_is_refused() -> None:
    model = FakeModel()
    with pytest.raises(SurgeryError, match="need a prefill step of 1 token or more, got 0"):
        prefill(model, model.make_cache(), [BOS], step_size=0)


def test_the_hidden_state_is_that_of_the_last_token_alone() -> None:
    model = FakeModel()
    hidden = prefill(model, model.make_cache(), [BOS, A, A + 1])
    assert hidden.shape == (1, 1, 1)
    assert isinstance(hidden, mx.array)
    assert int(hidden.item()) == model.state_after([BOS, A, A + 1])
