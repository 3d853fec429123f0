"""The whole way, from a conversation with pictures to tokens, against transformers' `generate`."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
import torch
from compressing import compress_steps
from demo_checkpoints import IMAGE_SIZE, TOKENS_PER_IMAGE
from reference_models import Checkpointed
from reference_processor import processor, random_picture, toy_tokenizer
from tiny_references import make_tiny

from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import CacheOptions, load_model

NUM_TOKENS = 40
EOS = [1, 106]
# The window is 64; each image takes 16 tokens.
TEXTS = {
    "text": "The quick brown fox isn't tired.",
    "long text": "A red circle is left of the blue square." * 6,
    "one image": "<start_of_image>What is this?",
    "three images": "<start_of_image> or <start_of_image>" + " and so on" * 20 + "<start_of_image>?",
}
FORMAT = "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Checkpointed:
    folder = tmp_path_factory.mktemp("greedy") / "source"
    return make_tiny(folder, tiny_tokenizer, torch.float32, embedding_scale=0.02)


def pictures_for(text: str) -> list:
    return [random_picture(200, 190, seed=index) for index in range(text.count("<start_of_image>"))]


@pytest.fixture(scope="module")
def expected(source: Checkpointed) -> dict[str, list[int]]:
    """What transformers generates, prompts built by its own processor."""
    tool = processor(toy_tokenizer(source.folder), IMAGE_SIZE, TOKENS_PER_IMAGE, "")
    answers = {}
    for name, text in TEXTS.items():
        pictures = pictures_for(text)
        inputs = tool(
            images=[pictures] if pictures else None,
            text=[FORMAT.format(text)],
            return_tensors="pt",
            add_special_tokens=False,
        )
        with torch.no_grad():
            out = source.reference.generate(
                **inputs, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=EOS, pad_token_id=0
            )
        answers[name] = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert all(len(set(answer)) > 3 for answer in answers.values()), answers
    assert len({tuple(answer) for answer in answers.values()}) == len(answers)
    return answers


def ours(source: Checkpointed, name: str, **options: object) -> list[int]:
    model, tokenizer = load_model(source.folder), Tokenizer.from_folder(source.folder)
    text = TEXTS[name]
    prompt = build_prompt(tokenizer, model.config, text, pictures_for(text))
    steps = stream_generate(model, tokenizer, prompt, max_tokens=NUM_TOKENS, eos_token_ids=EOS, **options)
    return [step.token for step in steps]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("step_size", [7, 512])
def test_greedy_tokens_equal_those_of_the_reference(source, expected, name, step_size):
    assert ours(source, name, prefill_step_size=step_size) == expected[name]


@pytest.mark.parametrize("name", ["text", "long text"])
def test_greedy_tokens_with_a_pruned_draft_model_equal_those_of_the_reference(
    source, expected, tmp_path, name
):
    toml = '[[steps]]\nstep = "prune_neurons"\nprotect_first = 6\n[[steps]]\nstep = "quantize"\nbits = 8\n'
    draft = load_model(compress_steps(source.folder, tmp_path, toml), dtype=mx.float32)
    assert ours(source, name, draft_model=draft, num_draft_tokens=3) == expected[name]


def test_a_coarse_cache_changes_the_tokens(source, expected):
    # The control: these tokens are close enough calls for an error to show.
    coarse = [ours(source, name, cache_options=CacheOptions(bits=2, group_size=32)) for name in TEXTS]
    assert any(got != expected[name] for got, name in zip(coarse, TEXTS, strict=True))
