"""Tokens of one image see each other, and nothing else ahead."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.models import KVCache, load_model
from gemma_surgery.models.gemma3.model import insert_images


def allowed(window, past, blocks):
    """The rule itself, pair by pair."""
    blocks = [0] * past + list(blocks)
    return np.array(
        [
            [
                (k <= q or (blocks[q] == blocks[k] != 0)) and (window is None or k > q - window)
                for k in range(len(blocks))
            ]
            for q in range(past, len(blocks))
        ]
    )


def append(cache, count):
    if count:
        zeros = mx.zeros((1, 1, count, 8))
        cache.attend(zeros, zeros, zeros, 1.0, cache.sight(count))


@pytest.mark.parametrize("window", [None, 4, 7, 100])
@pytest.mark.parametrize("past", [0, 3, 9])
@pytest.mark.parametrize("blocks", [[0, 0, 0], [0, 1, 1, 1, 0, 2, 2, 0], [1, 1, 2, 2], [0] * 12 + [1] * 5])
def test_masks_follow_the_rule(window, past, blocks):
    cache = KVCache(window)
    append(cache, past)
    visible = past if window is None else min(past, window - 1)
    expected = allowed(window, past, blocks)[:, past - visible :]
    mask = cache.mask(len(blocks), mx.array(blocks, dtype=mx.int32))
    np.testing.assert_array_equal(np.asarray(mask), expected)


@pytest.mark.parametrize("window", [None, 4, 7, 100])
@pytest.mark.parametrize("past", [0, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_short_masks_of_text_say_the_same_as_the_rule(window, past, length):
    cache = KVCache(window)
    append(cache, past)
    visible = past if window is None else min(past, window - 1)
    mask = cache.mask(length)
    keys = mx.arange(visible + length)[None]
    if mask is None:
        mask = keys >= 0
    elif isinstance(mask, str):
        mask = keys <= visible + mx.arange(length)[:, None]
    expected = allowed(window, past, [0] * length)[:, past - visible :]
    np.testing.assert_array_equal(np.broadcast_to(np.asarray(mask), expected.shape), expected)


@pytest.fixture(scope="module")
def model(tiny_dense):
    return load_model(tiny_dense, dtype=mx.float32)


@pytest.fixture(scope="module")
def prompt(model):
    """Text, an image, text, an image, text: ids int32 [1, T] and pixels [2, S, S, 3]."""
    config = model.config
    image = [config.image_token_id] * config.vision.tokens_per_image
    text = list(range(300, 330))
    ids = [2, *text[:9], *image, *text[9:20], *image, *text[20:]]
    size = config.vision.image_size
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    return mx.array([ids], dtype=mx.int32), mx.array(pixels)


def test_an_image_changes_nothing_before_it(model, prompt):
    ids, pixels = prompt
    first = np.asarray(model(ids, pixels))
    other = np.asarray(model(ids, mx.concatenate([pixels[:1], -pixels[1:]])))
    start = int(np.flatnonzero(np.asarray(ids[0]) == model.config.image_token_id)[16])
    np.testing.assert_array_equal(first[:, :start], other[:, :start])
    assert np.abs(first[:, start:] - other[:, start:]).max() > 1e-3


def test_the_first_token_of_an_image_sees_its_last_patch(model, prompt):
    ids, pixels = prompt
    inputs = model.embed(ids)
    images = model.embed_images(pixels)
    is_image = np.asarray(ids[0]) == model.config.image_token_id
    first = int(np.flatnonzero(is_image)[0])

    def hidden(images):
        with_images, blocks = insert_images(mx.array(inputs), images, is_image)
        return np.asarray(model.forward(with_images, model.make_cache(), blocks))

    before = hidden(images)
    images[0, -1] = -images[0, -1]
    after = hidden(images)
    assert np.abs(before - after)[0, first].max() > 1e-4
    np.testing.assert_array_equal(before[0, :first], after[0, :first])


def test_image_tokens_are_not_scaled_and_replace_what_was_there(model, prompt):
    ids, pixels = prompt
    images = model.embed_images(pixels)
    is_image = np.asarray(ids[0]) == model.config.image_token_id
    inputs, blocks = insert_images(model.embed(ids), images, is_image)
    np.testing.assert_array_equal(np.asarray(inputs)[0, is_image], np.asarray(images).reshape(32, -1))
    assert np.asarray(blocks)[is_image].tolist() == [1] * 16 + [2] * 16
    assert not np.asarray(blocks)[~is_image].any()


@pytest.mark.parametrize("places", [[], [3, 4, 5], [*range(3, 18), 19], range(3, 35)])
def test_image_tokens_that_do_not_match_the_images_are_refused(model, prompt, places):
    images = model.embed_images(prompt[1][:1])
    is_image = np.zeros(40, bool)
    is_image[list(places)] = True
    with pytest.raises(SurgeryError, match=r"need 1 runs of 16 image tokens for 1 images, got \d+ tokens"):
        insert_images(mx.zeros((1, 40, 128)), images, is_image)


def test_pixels_of_another_size_are_refused(model):
    with pytest.raises(SurgeryError, match=r"need pixels \[N, 224, 224, 3\], got \[1, 112, 112, 3\]"):
        model.embed_images(mx.zeros((1, 112, 112, 3)))
