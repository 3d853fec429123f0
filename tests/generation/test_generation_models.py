"""The loop around real, small models with random weights."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from compressing import plan_recipe
from sentences import SENTENCES

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.loading import load
from gemma_surgery.generation.logits_processors import make_logits_processors
from gemma_surgery.generation.prefill import prefill
from gemma_surgery.generation.prompt import Prompt
from gemma_surgery.generation.prompt_cache import PromptCache
from gemma_surgery.generation.request import Draft
from gemma_surgery.generation.samplers import make_sampler
from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import CacheOptions, Gemma3Model
from gemma_surgery.surgery.executor import execute

Loaded = tuple[Gemma3Model, Tokenizer]
LONG = [2, *np.random.default_rng(3).integers(400, 1800, 149).tolist()]


@pytest.fixture(scope="module")
def original(tiny: Path) -> Loaded:
    return load(tiny)


@pytest.fixture(scope="module")
def pruned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The same after `mobile`: fewer tokens, layers and neurons, and smaller images."""
    target = tmp_path_factory.mktemp("draft") / "mobile"
    execute(plan_recipe(tiny), target)
    return load(target)


def image_prompt(model: Gemma3Model) -> Prompt:
    config, vision = model.config, model.config.vision
    shape = (2, vision.image_size, vision.image_size, 3)
    pixels = np.random.default_rng(4).uniform(-1, 1, shape).astype(np.float32)
    block = [config.boi_token_id, *[config.image_token_id] * vision.tokens_per_image, config.eoi_token_id]
    # Newline runs, which every vocabulary keeps.
    return Prompt([2, 107, *block, 108, *block, *LONG[1:40]], pixels)


def chosen(loaded: Loaded, prompt, count: int = 20, **options) -> list[int]:
    steps = stream_generate(*loaded, prompt, max_tokens=count, eos_token_ids=(), **options)
    return [step.token for step in steps]


def without_cache(
    model: Gemma3Model, prompt: list[int], count: int, pixels: np.ndarray | None = None
) -> list[int]:
    """The whole text again for each token."""
    ids = list(prompt)
    for _ in range(count):
        images = None if pixels is None else mx.array(pixels)
        logits = np.array(model.full_logits(model(mx.array([ids]), images))[0, -1])
        logits[model.config.image_token_id] = -np.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("which", ["original", "pruned"])
def test_generated_tokens_are_those_of_whole_passes(which: str, request: pytest.FixtureRequest) -> None:
    loaded = request.getfixturevalue(which)
    prompt = loaded[1].encode(" ".join(SENTENCES[:3]))[:50]
    assert len(prompt) < loaded[0].config.text.window < len(prompt) + 30
    assert chosen(loaded, [2, *prompt], 30) == without_cache(loaded[0], [2, *prompt], 30)


def test_generated_tokens_behind_images_are_those_of_whole_passes(original: Loaded) -> None:
    prompt = image_prompt(original[0])
    expected = without_cache(original[0], prompt.tokens, 10, prompt.pixels)
    for step in (7, 50, 512):
        assert chosen(original, prompt, 10, prefill_step_size=step) == expected


@pytest.mark.parametrize("with_images", [False, True])
def test_a_prompt_in_pieces_gives_the_logits_of_one_pass(original: Loaded, with_images: bool) -> None:
    model = original[0]
    prompt = image_prompt(model) if with_images else Prompt(LONG)
    whole = None
    for step in (512, 1, 5, 33, 64, 65):
        hidden = prefill(model, model.make_cache(), prompt.tokens, prompt.pixels, step)
        logits = np.array(model.logits(hidden))
        whole = logits if whole is None else whole
        np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("options", [None, CacheOptions(bits=8, group_size=32)], ids=["dense", "quantized"])
def test_speculation_with_the_compressed_model_gives_the_tokens_of_plain_greedy(
    original: Loaded, pruned: Loaded, options: CacheOptions | None
) -> None:
    draft = Draft.of(*original, *pruned)
    for sentence in SENTENCES[::7]:
        plain = chosen(original, sentence, cache_options=options)
        assert chosen(original, sentence, draft_model=draft, cache_options=options) == plain
    long_plain = chosen(original, LONG, cache_options=options)
    assert (
        chosen(original, LONG, draft_model=pruned[0], num_draft_tokens=5, cache_options=options) == long_plain
    )


def test_speculation_for_the_compressed_model_works_too(original: Loaded, pruned: Loaded) -> None:
    assert chosen(pruned, "The red circle", draft_model=original[0]) == chosen(pruned, "The red circle")


def test_speculation_with_the_model_itself_accepts_everything_and_obeys_a_penalty(original: Loaded) -> None:
    processors = make_logits_processors(original[0], repetition_penalty=1.3)
    plain = chosen(original, "The red circle", logits_processors=processors)
    steps = list(
        stream_generate(
            *original,
            "The red circle",
            max_tokens=20,
            eos_token_ids=(),
            logits_processors=processors,
            draft_model=original[0],
        )
    )
    assert [step.token for step in steps] == plain
    assert steps[-1].accepted == steps[-1].drafted == 14


def test_a_draft_of_another_image_size_needs_its_own_prompt(original: Loaded, pruned: Loaded) -> None:
    prompt = image_prompt(original[0])
    with pytest.raises(SurgeryError, match="need a draft model that sees images as the main model does"):
        chosen(original, prompt, draft_model=pruned[0])
    own = image_prompt(pruned[0])
    own.tokens[-39:] = pruned[1].encode("The red circle is left of")
    plain = chosen(original, prompt, 20)
    assert chosen(original, prompt, 20, draft_model=pruned[0], draft_prompt=own) == plain


def test_a_conversation_goes_on_after_an_early_end_in_a_block(original: Loaded) -> None:
    model = original[0]
    for taken in (1, 2, 4, 6):
        caches = {name: PromptCache.empty(model, CacheOptions(slack=4)) for name in ("cache", "draft_cache")}
        stream = stream_generate(*original, LONG, eos_token_ids=(), draft_model=model, **caches)
        got = [next(stream).token for _ in range(taken)]
        stream.close()
        for cache in caches.values():
            cache.check(model)
            assert cache.tokens == [*LONG, *got]
        turn = [600, 601]
        after = chosen(original, turn, 8, draft_model=model, **caches)
        assert after == chosen(original, [*LONG, *got, *turn], 8)


def test_text_opens_no_vision_file(pruned: Loaded) -> None:
    model = load(pruned[0].checkpoint.path)[0]
    chosen((model, pruned[1]), "The red circle", 5)
    assert not model.vision_loaded
    assert model.opened_files == ["language_model.safetensors"]


def test_pruned_tokens_are_never_drawn(pruned: Loaded) -> None:
    tokenizer = pruned[1]
    got = chosen(pruned, "The", 150, sampler=make_sampler(5.0, seed=1))
    assert len(set(got)) > 50
    assert all(tokenizer.token_of(token) is not None for token in got)
