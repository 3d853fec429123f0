"""The trained model that ships with the package: we and transformers, on the same weights in float32."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from comparing import assert_equal, reference_logits, to_numpy
from reference_models import with_stored_scale
from stored_values import reference_of_file
from transformers import Gemma3ForConditionalGeneration

from gemma_surgery.demo_model import FORMS, demo_model_path
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prompt import Prompt, build_prompt
from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import Gemma3Model, load_model

PROMPTS = {
    "text": ("Count from one to five.", 0),
    "long text": ("The red circle isn't above the blue square. " * 12, 0),
    "one image": ("Describe the image.", 1),
    "two images": ("<start_of_image> What do you see? <start_of_image> And here?", 2),
}
NUM_GENERATED = 24


@pytest.fixture(scope="module", params=FORMS)
def sides(request: pytest.FixtureRequest) -> tuple[Gemma3Model, Tokenizer, torch.nn.Module]:
    """Our engine, its tokenizer, and the reference in float32."""
    try:
        folder = demo_model_path(request.param)
    except SurgeryError as error:
        pytest.skip(f"the trained model is not there: {error}")
    return opened(folder)


def opened(folder: Path) -> tuple[Gemma3Model, Tokenizer, torch.nn.Module]:
    model = load_model(folder, dtype=mx.float32)
    if "quantization" in model.checkpoint.config:
        reference = reference_of_file(folder)[1]
    else:
        reference = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Tokenizer.load(model.checkpoint), with_stored_scale(reference)


def prompt_of(model: Gemma3Model, tokenizer: Tokenizer, name: str) -> Prompt:
    from gemma_surgery.demo_model.scenes import random_scene, render

    text, count = PROMPTS[name]
    assert model.config.vision is not None
    size = model.config.vision.image_size
    rng = random.Random(name)
    pictures = [render(random_scene(rng), size) for _ in range(count)]
    return build_prompt(tokenizer, model.config, text, pictures)


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_of_the_trained_model_equal_the_reference(sides, name):
    model, tokenizer, reference = sides
    prompt = prompt_of(model, tokenizer, name)
    tokens = np.array([prompt.tokens], np.int32)
    expected = reference_logits(reference, tokens, prompt.pixels, model.config.image_token_id)
    pixels = None if prompt.pixels is None else mx.array(prompt.pixels)
    assert_equal(to_numpy(model(mx.array(tokens), pixels)), expected, f"trained, {name}")


@pytest.mark.parametrize("name", PROMPTS)
def test_the_trained_model_answers_with_the_tokens_of_the_reference(sides, name):
    model, tokenizer, reference = sides
    prompt = prompt_of(model, tokenizer, name)
    expected = reference_answer(reference, prompt, model)
    steps = list(stream_generate(model, tokenizer, prompt, max_tokens=NUM_GENERATED))
    print(repr("".join(step.text for step in steps)))
    chosen = [step.token for step in steps]
    assert chosen == expected


def reference_answer(reference: torch.nn.Module, prompt: Prompt, model: Gemma3Model) -> list[int]:
    """Greedy tokens of transformers' own `generate`."""
    ids = torch.tensor([prompt.tokens])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.pixels is not None:
        inputs["pixel_values"] = torch.from_numpy(prompt.pixels).permute(0, 3, 1, 2)
        inputs["token_type_ids"] = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        out = reference.generate(
            **inputs,
            max_new_tokens=NUM_GENERATED,
            do_sample=False,
            eos_token_id=list(model.config.eos_token_ids),
            pad_token_id=0,
        )
    return out[0, ids.shape[1] :].tolist()
