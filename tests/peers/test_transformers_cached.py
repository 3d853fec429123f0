"""Prefill in chunks and token by token against one pass of the reference, across the window's border."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from comparing import (
    BARE,
    IMAGE,
    Layout,
    assert_equal,
    expected_logits,
    prompt_tokens,
    random_pixels,
    to_numpy,
)
from reference_models import Checkpointed

from gemma_surgery.models import CacheOptions, Gemma3Model, KVCache, load_model

# The window is 16. The last size repeats until the prompt is used up.
CHUNKS = {
    "one by one": (1,),
    "by three": (3,),
    "by 15": (15,),
    "by a window": (16,),
    "by 17": (17,),
    "one, then by 23": (1, 23),
    "odd sizes": (5, 1, 31, 2, 16, 47),
    "a long one, then one by one": (61, 1),
    "longer than the buffers grow": (300, 1, 1, 7),
}
IMAGE_LAYOUTS: dict[str, Layout] = {
    "text and two images": (9, IMAGE, 33, IMAGE, 30),
    "image first": (BARE, 40),
    "images one after the other": (3, IMAGE, IMAGE, 21),
}


@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunked_text_gives_the_logits_of_one_reference_pass(checkpoint, chunks):
    source = checkpoint(multimodal=False)
    layout = (401 if max(CHUNKS[chunks]) > 100 else 131,)
    model = load_model(source.folder)
    got = run_in_chunks(model, source, layout, model.make_cache(), CHUNKS[chunks])
    assert_equal(got, expected_logits(source, layout), chunks)


def test_chunked_rows_of_a_batch_give_the_logits_of_one_reference_pass(checkpoint):
    source = checkpoint(multimodal=False)
    model = load_model(source.folder)
    cache = model.make_cache()
    tokens = mx.array(prompt_tokens(source, (70,), batch=2))
    parts = [to_numpy(model(tokens[:, start : start + 9], cache=cache)) for start in range(0, 70, 9)]
    assert_equal(np.concatenate(parts, axis=1), expected_logits(source, (70,), batch=2), "two rows by nine")


@pytest.mark.parametrize("chunks", ["one by one", "by three", "odd sizes"])
@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_chunked_images_give_the_logits_of_one_reference_pass(checkpoint, layout, chunks):
    source = checkpoint()
    parts = IMAGE_LAYOUTS[layout]
    model = load_model(source.folder)
    got = run_in_chunks(model, source, parts, model.make_cache(), CHUNKS[chunks])
    assert_equal(got, expected_logits(source, parts), f"{layout}, {chunks}")


@pytest.mark.parametrize("taken_back", [1, 7])
def test_tokens_taken_back_leave_no_trace(checkpoint, taken_back):
    source = checkpoint(multimodal=False)
    model = load_model(source.folder)
    layout = (90,)
    tokens = mx.array(prompt_tokens(source, layout))
    other = mx.array(prompt_tokens(source, layout, seed=1))
    cache = model.make_cache(CacheOptions(slack=7))
    got = []
    for start in range(0, 90, 10):
        got.append(to_numpy(model(tokens[:, start : start + 10], cache=cache)))
        mx.eval(model(other[:, :taken_back], cache=cache))
        for layer in cache:
            layer.trim(taken_back)
    assert_equal(np.concatenate(got, axis=1), expected_logits(source, layout), f"{taken_back} taken back")


def test_a_restored_cache_continues_like_the_reference(checkpoint, tmp_path):
    source = checkpoint()
    layout = (9, IMAGE, 33, IMAGE, 30)
    model = load_model(source.folder)
    cache = model.make_cache()
    steps = list(chunks_of(model, source, layout, (5, 40)))
    got = [to_numpy(model.logits(model.forward(*step_with(cache, step)))) for step in steps[:-1]]
    for index, layer in enumerate(cache):
        mx.save_safetensors(str(tmp_path / f"{index}.safetensors"), layer.state(), layer.meta())
    restored = []
    for index in range(len(cache)):
        state, meta = mx.load(str(tmp_path / f"{index}.safetensors"), return_metadata=True)
        restored.append(KVCache.restored(state, meta))
    got.append(to_numpy(model.logits(model.forward(*step_with(restored, steps[-1])))))
    assert_equal(np.concatenate(got, axis=1), expected_logits(source, layout), "restored cache")


def run_in_chunks(
    model: Gemma3Model, source: Checkpointed, layout: Layout, cache: list[KVCache], chunks: tuple[int, ...]
) -> np.ndarray:
    parts = [
        to_numpy(model.logits(model.forward(*step_with(cache, step))))
        for step in chunks_of(model, source, layout, chunks)
    ]
    return np.concatenate(parts, axis=1)


Step = tuple[mx.array, mx.array | None]


def step_with(cache: list[KVCache], step: Step) -> tuple[mx.array, list[KVCache], mx.array | None]:
    return step[0], cache, step[1]


def chunks_of(
    model: Gemma3Model, source: Checkpointed, layout: Layout, chunks: tuple[int, ...]
) -> Iterator[Step]:
    """Inputs and image blocks chunk by chunk; a chunk is made longer rather than cut an image."""
    tokens, pixels = prompt_tokens(source, layout)[0], random_pixels(source, layout)
    is_image = tokens == source.config.get("image_token_index", -1)
    images = None if pixels is None else model.embed_images(mx.array(pixels))
    used, start, turn = 0, 0, 0
    while start < len(tokens):
        end = min(len(tokens), start + chunks[min(turn, len(chunks) - 1)])
        while end < len(tokens) and is_image[end - 1] and is_image[end]:
            end += 1
        inputs = model.embed(mx.array(tokens[None, start:end]))
        blocks = np.zeros(end - start, np.int32)
        places = np.flatnonzero(is_image[start:end])
        for place in places.reshape(-1, source.tokens_per_image if images is not None else 1):
            assert images is not None
            inputs[:, place[0] : place[-1] + 1] = images[used]
            used += 1
            blocks[place] = used
        yield inputs, mx.array(blocks) if len(places) else None
        start, turn = end, turn + 1
