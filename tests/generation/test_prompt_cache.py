from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation import prompt_cache as module
from gemma_surgery.generation.loading import load
from gemma_surgery.generation.prompt import Prompt
from gemma_surgery.generation.prompt_cache import PromptCache, load_prompt_cache, save_prompt_cache
from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import CacheOptions, Gemma3Model

# Longer than the window of 64, so that local layers have dropped tokens.
LONG = list(np.random.default_rng(1).integers(400, 1800, 150))
TURN = [500, 501, 502]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> tuple[Gemma3Model, Tokenizer]:
    return load(tiny)


def image_prompt(model: Gemma3Model) -> Prompt:
    vision = model.config.vision
    size = vision.image_size
    pixels = np.random.default_rng(2).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    config = model.config
    block = [config.boi_token_id, *[config.image_token_id] * vision.tokens_per_image, config.eoi_token_id]
    return Prompt([2, 700, *block, 701, *LONG[:60]], pixels)


def continued(
    loaded: tuple[Gemma3Model, Tokenizer], prompt: Any, cache: PromptCache
) -> list[tuple[int, float]]:
    steps = stream_generate(*loaded, prompt, max_tokens=12, cache=cache, eos_token_ids=())
    return [(step.token, step.logprob) for step in steps]


def filled(
    loaded: tuple[Gemma3Model, Tokenizer], prompt: Any, options: CacheOptions | None = None
) -> PromptCache:
    cache = PromptCache.empty(loaded[0], options)
    continued(loaded, prompt, cache)
    return cache


@pytest.mark.parametrize(
    "options",
    [
        None,
        CacheOptions(slack=5),
        CacheOptions(bits=8, group_size=32),
        CacheOptions(4, 32, quantize_after=155),
    ],
    ids=["dense", "slack", "quantized", "quantized later"],
)
@pytest.mark.parametrize("kind", ["short", "long", "image"])
def test_a_saved_cache_continues_identically(
    loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path, kind: str, options: CacheOptions | None
) -> None:
    prompt = {"short": LONG[:9], "long": LONG, "image": image_prompt(loaded[0])}[kind]
    cache = filled(loaded, prompt, options)
    path = tmp_path / "prompt.safetensors"
    save_prompt_cache(path, loaded[0], cache)
    again = load_prompt_cache(path, loaded[0])
    assert (again.tokens, again.images) == (cache.tokens, cache.images)
    assert len(again.images) == (kind == "image")
    assert [layer.options for layer in again.layers] == [layer.options for layer in cache.layers]
    assert continued(loaded, TURN, again) == continued(loaded, TURN, cache)
    assert again.tokens == cache.tokens


def test_any_file_name_will_do(loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path) -> None:
    cache = filled(loaded, LONG[:9])
    save_prompt_cache(tmp_path / "my cache", loaded[0], cache)
    assert [path.name for path in tmp_path.iterdir()] == ["my cache"]
    assert load_prompt_cache(tmp_path / "my cache", loaded[0]).tokens == cache.tokens


@pytest.fixture
def saved(loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path) -> Path:
    path = tmp_path / "saved.safetensors"
    save_prompt_cache(path, loaded[0], filled(loaded, LONG[:30]))
    return path


def test_a_cache_of_other_weights_of_the_same_shape_is_refused(
    loaded: tuple[Gemma3Model, Tokenizer], saved: Path, tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    tensor = loaded[0].checkpoint.tensors["language_model.model.layers.3.mlp.up_proj.weight"]
    middle = (tensor.start + tensor.end) // 2
    data[middle : middle + 64] = bytes(64)
    weights.write_bytes(data)
    model, _ = load(other)
    assert model.checkpoint.fingerprint == loaded[0].checkpoint.fingerprint
    with pytest.raises(SurgeryError, match="got one of another checkpoint in"):
        load_prompt_cache(saved, model)


def test_a_copy_of_the_checkpoint_may_use_the_cache(saved: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    assert load_prompt_cache(saved, load(tmp_path / "copy")[0]).tokens[:3] == LONG[:3]


def test_a_cache_in_another_dtype_is_refused(saved: Path, tiny: Path) -> None:
    with pytest.raises(SurgeryError, match=r"need a prompt cache computed in `mlx.core.bfloat16`"):
        load_prompt_cache(saved, load(tiny, dtype=mx.bfloat16)[0])


def test_a_truncated_file_is_refused_at_any_length(
    loaded: tuple[Gemma3Model, Tokenizer], saved: Path, tmp_path: Path
) -> None:
    data = saved.read_bytes()
    for length in (0, 7, 8, 100, 3000, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:length])
        with pytest.raises(SurgeryError):
            load_prompt_cache(cut, loaded[0])


def test_a_weight_file_is_no_prompt_cache(loaded: tuple[Gemma3Model, Tokenizer], tiny: Path) -> None:
    with pytest.raises(SurgeryError, match="need a prompt cache of version 1, got something else"):
        load_prompt_cache(tiny / "model.safetensors", loaded[0])


def test_a_missing_file_is_one_clear_error(loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="missing"):
        load_prompt_cache(tmp_path / "missing", loaded[0])


def rewritten(path: Path, change: Any) -> Path:
    arrays, metadata = mx.load(str(path), return_metadata=True)
    arrays = {name: mx.array(array) for name, array in arrays.items()}
    mx.eval(arrays)
    change(arrays, metadata)
    target = path.with_name("changed.safetensors")
    mx.save_safetensors(str(target), arrays, metadata)
    return target


def _drop_a_layer(arrays: dict, metadata: dict) -> None:
    metadata["layers"] = json.dumps(json.loads(metadata["layers"])[:-1])
    for name in [name for name in arrays if name.startswith("layers.7.")]:
        del arrays[name]


def _another_window(arrays: dict, metadata: dict) -> None:
    metadata["layers"] = metadata["layers"].replace('"window": "64"', '"window": "32"')


def _longer_tokens(arrays: dict, metadata: dict) -> None:
    arrays["tokens"] = mx.concatenate([arrays["tokens"], arrays["tokens"]])


CHANGES = {
    "no tokens": lambda arrays, metadata: arrays.pop("tokens"),
    "more tokens": _longer_tokens,
    "no layers": lambda arrays, metadata: metadata.update(layers="[]"),
    "layers that are no JSON": lambda arrays, metadata: metadata.update(layers="[{"),
    "layers that are no list": lambda arrays, metadata: metadata.update(layers="3"),
    "layers that are no objects": lambda arrays, metadata: metadata.update(layers="[1]"),
    "images that are numbers": lambda arrays, metadata: metadata.update(images="[1]"),
    "a layer less": _drop_a_layer,
    "another window": _another_window,
    "a flat array": lambda arrays, metadata: arrays.update({"layers.0.0": mx.zeros((3,))}),
    "an unknown array": lambda arrays, metadata: arrays.update({"more": mx.zeros((1, 1, 1, 1))}),
    "more heads": lambda arrays, metadata: arrays.update(
        {f"layers.0.{i}": mx.zeros((1, 9, arrays["layers.0.0"].shape[2], 32)) for i in (0, 1)}
    ),
    "a layer without arrays": lambda arrays, metadata: [arrays.pop(f"layers.0.{i}") for i in (0, 1)],
    "another version": lambda arrays, metadata: metadata.update(version="2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_tampered_with_is_one_clear_error(
    loaded: tuple[Gemma3Model, Tokenizer], saved: Path, change: str
) -> None:
    # Written again without a change it is fine: it is the change that is refused.
    load_prompt_cache(rewritten(saved, lambda arrays, metadata: None), loaded[0])
    with pytest.raises(SurgeryError) as caught:
        load_prompt_cache(rewritten(saved, CHANGES[change]), loaded[0])
    assert "\n" not in caught.value.message


def test_a_failed_write_leaves_the_old_file_and_no_other(
    loaded: tuple[Gemma3Model, Tokenizer], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    save = mx.save_safetensors

    def half(path: str, arrays: Any, metadata: Any) -> None:
        save(path, arrays, metadata)
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        raise RuntimeError("disk full")

    monkeypatch.setattr(module.mx, "save_safetensors", half)
    with pytest.raises(SurgeryError, match=r"cannot write `.*saved.safetensors`: disk full"):
        save_prompt_cache(saved, loaded[0], filled(loaded, LONG[:5]))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved.safetensors"]


def test_a_new_file_takes_the_place_of_the_old_one_whole(
    loaded: tuple[Gemma3Model, Tokenizer], saved: Path
) -> None:
    old = saved.with_name("old")
    old.hardlink_to(saved)
    before = saved.read_bytes()
    save_prompt_cache(saved, loaded[0], filled(loaded, LONG[:5]))
    assert old.read_bytes() == before != saved.read_bytes()


def test_a_folder_that_is_not_there_is_one_clear_error(
    loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path
) -> None:
    with pytest.raises(SurgeryError, match="cannot write"):
        save_prompt_cache(tmp_path / "no" / "cache", loaded[0], filled(loaded, LONG[:5]))


def test_an_empty_cache_is_not_saved(loaded: tuple[Gemma3Model, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="need a cache that holds tokens, got an empty one"):
        save_prompt_cache(tmp_path / "cache", loaded[0], PromptCache.empty(loaded[0]))


def test_keeping_the_first_tokens_goes_on_as_if_there_had_been_no_others(
    loaded: tuple[Gemma3Model, Tokenizer],
) -> None:
    model = loaded[0]
    cache = PromptCache.empty(model, CacheOptions(slack=40))
    prompt = image_prompt(model)
    first = continued(loaded, prompt, cache)
    held = [*prompt.tokens, *(token for token, _ in first)]
    assert cache.tokens == held
    assert cache.can_keep(len(held) - 20)
    cache.keep(model, len(held) - 20)
    fresh = PromptCache.empty(model)
    expected = continued(loaded, Prompt([*held[:-20], *TURN], prompt.pixels), fresh)
    got = continued(loaded, TURN, cache)
    assert [token for token, _ in got] == [token for token, _ in expected]
    np.testing.assert_allclose([lp for _, lp in got], [lp for _, lp in expected], atol=1e-4)
    assert len(cache.images) == 1


def test_keeping_nothing_empties_the_cache(loaded: tuple[Gemma3Model, Tokenizer]) -> None:
    model = loaded[0]
    cache = filled(loaded, image_prompt(model), CacheOptions(slack=200))
    cache.keep(model, 0)
    assert (cache.tokens, cache.images, cache.offset) == ([], [], 0)


def test_a_cut_inside_an_image_or_behind_the_slack_is_refused(loaded: tuple[Gemma3Model, Tokenizer]) -> None:
    model = loaded[0]
    cache = filled(loaded, image_prompt(model), CacheOptions(slack=200))
    with pytest.raises(SurgeryError, match="need a cut between images, got one inside the image at token 5"):
        cache.keep(model, 5)
    assert cache.offset == len(cache.tokens)
    plain = filled(loaded, LONG)
    assert not plain.can_keep(20)
    with pytest.raises(SurgeryError, match="to take back within a window"):
        plain.keep(model, 20)
