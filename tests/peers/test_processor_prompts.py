"""Tokens and pixels of whole prompts against the reference's processor and chat templates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_checkpoints import IMAGE_SIZE, TOKENS_PER_IMAGE
from reference_processor import processor, random_picture, real_tokenizer_of, toy_tokenizer
from transformers import PreTrainedTokenizerBase

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.generation.images import ImageSettings
from gemma_surgery.generation.pan_and_scan import PanAndScan
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config

# Gemma's turns in as few words as a template needs.
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{ '<start_of_turn>' + role + '\n' }}
{%- if message.content is string %}{{ message.content | trim }}
{%- else %}{% for part in message.content -%}
{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}
{%- endfor %}{% endif %}{{ '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

IMAGE = {"type": "image"}


def said(*parts: str | dict) -> dict:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def answered(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


CONVERSATIONS: dict[str, list[dict]] = {
    "text": [said("The quick brown fox isn't tired.")],
    "newlines and spaces": [said("  a\n\n\n  b\t\tc   \n")],
    "other scripts and emoji": [said("Быстрая лиса, すべての人間は 👩‍🚀 €5")],
    "text that names control tokens": [said("what is <end_of_turn> or <bos> or <unused5>?")],
    "three turns": [said("Hello"), answered("  Hi there. "), said("And now?")],
    "image before text": [said(IMAGE, "What is this?")],
    "text before image": [said("What is this?", IMAGE)],
    "image alone": [said(IMAGE)],
    "two images and text between": [said(IMAGE, "or", IMAGE, "?")],
    "images one after the other": [said(IMAGE, IMAGE, "Compare.")],
    "images in two turns": [said(IMAGE, "first"), answered("ok"), said("second", IMAGE)],
    "newlines around an image": [said("above\n", IMAGE, "\nbelow")],
}
# (width, height) of the pictures in turn: square enough, and wide and tall enough to be cut.
PICTURES = [(201, 190), (640, 150), (150, 500)]


@pytest.fixture(scope="module")
def toy(tiny_dense: Path, tiny_tokenizer: Path) -> tuple[PreTrainedTokenizerBase, Tokenizer, ModelConfig]:
    config = read_model_config(open_checkpoint(tiny_dense))
    return toy_tokenizer(tiny_dense), Tokenizer.from_folder(tiny_tokenizer), config


@pytest.fixture(scope="module")
def real(tiny_dense: Path, real_tokenizer: Path) -> tuple[PreTrainedTokenizerBase, Tokenizer, ModelConfig]:
    config = read_model_config(open_checkpoint(tiny_dense))
    config = replace(
        config,
        text=replace(config.text, vocab_size=262_208),
        boi_token_id=255_999,
        eoi_token_id=256_000,
        image_token_id=262_144,
    )
    return real_tokenizer_of(real_tokenizer), Tokenizer.from_folder(real_tokenizer), config


def compare(
    sides: tuple[PreTrainedTokenizerBase, Tokenizer, ModelConfig],
    conversation: list[dict],
    template: str,
    crops: PanAndScan | None = None,
) -> None:
    """Both sides build the prompt of a conversation; tokens and pixels must be the same."""
    theirs, ours, config = sides
    count = sum(part == IMAGE for message in conversation for part in message["content"])
    pictures = [random_picture(*PICTURES[index % 3], seed=index) for index in range(count)]
    with_pictures = filled(conversation, pictures)
    cutting = {}
    if crops is not None:
        cutting = {
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": crops.min_crop_size,
            "pan_and_scan_max_num_crops": crops.max_num_crops,
            "pan_and_scan_min_ratio_to_activate": crops.min_ratio,
        }
    expected = processor(theirs, IMAGE_SIZE, TOKENS_PER_IMAGE, template).apply_chat_template(
        with_pictures,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        processor_kwargs=cutting,
    )
    settings = ImageSettings(size=IMAGE_SIZE, pan_and_scan=crops)
    prompt = build_prompt(ours, config, conversation, pictures, settings=settings)
    assert prompt.tokens == np.asarray(expected["input_ids"])[0].tolist()
    is_image = np.asarray(prompt.tokens) == config.image_token_id
    assert is_image.tolist() == (np.asarray(expected["token_type_ids"])[0] == 1).tolist()
    if not count:
        assert prompt.pixels is None
        return
    pixels = np.asarray(expected["pixel_values"]).transpose(0, 2, 3, 1)
    assert len(prompt.image_spans) == len(pixels)
    # The second and third of the pictures are far from square.
    assert (len(pixels) > count) == (crops is not None and count > 1)
    assert np.abs(prompt.pixels - pixels).max() == 0


def filled(conversation: list[dict], pictures: list) -> list[dict]:
    """The conversation with each image part holding its picture, as transformers wants it."""
    left = iter(pictures)
    return [
        message
        | {
            "content": [
                part | {"image": next(left)} if part == IMAGE else part for part in message["content"]
            ]
        }
        for message in conversation
    ]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chat_prompts_in_gemmas_turns_equal_the_reference(toy, name):
    assert toy[1].template is None
    compare(toy, CONVERSATIONS[name], TEMPLATE)


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if "image" in name])
def test_pan_and_scan_prompts_equal_the_reference(toy, name):
    compare(toy, CONVERSATIONS[name], TEMPLATE, PanAndScan(64, 3, 1.2))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_by_the_checkpoints_own_template_equal_the_reference(toy, tiny_dense, tmp_path, name):
    for file in tiny_dense.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.template is not None
    compare((toy[0], tokenizer, toy[2]), CONVERSATIONS[name], TEMPLATE)


@pytest.mark.parametrize("text", ["<start_of_image> and <start_of_image>", "a<start_of_image>", "no image"])
def test_raw_prompts_equal_the_reference(toy, text):
    theirs, ours, config = toy
    pictures = [random_picture(90, 80, seed=index) for index in range(text.count("<start_of_image>"))]
    expected = processor(theirs, IMAGE_SIZE, TOKENS_PER_IMAGE, TEMPLATE)(
        images=[pictures] if pictures else None, text=[text], return_tensors="np"
    )
    prompt = build_prompt(ours, config, text, pictures, chat=False, settings=ImageSettings(size=IMAGE_SIZE))
    assert prompt.tokens == np.asarray(expected["input_ids"])[0].tolist()


@pytest.mark.real_tokenizer
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_of_the_real_tokenizer_and_template_equal_the_reference(real, real_tokenizer, name):
    compare(real, CONVERSATIONS[name], real_template(real_tokenizer))


@pytest.mark.real_tokenizer
def test_the_real_template_with_a_system_prompt_equals_the_reference(real, real_tokenizer):
    conversation = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, said(IMAGE, "Hi")]
    compare(real, conversation, real_template(real_tokenizer))


@pytest.mark.real_tokenizer
@pytest.mark.parametrize("text", ["a <start_of_image> b", "<start_of_image>", "plain"])
def test_raw_prompts_of_the_real_tokenizer_equal_the_reference(real, real_tokenizer, text):
    theirs, ours, config = real
    pictures = [random_picture(90, 80)] * text.count("<start_of_image>")
    template = real_template(real_tokenizer)
    expected = processor(theirs, IMAGE_SIZE, TOKENS_PER_IMAGE, template)(
        images=[pictures] if pictures else None, text=[text], return_tensors="np"
    )
    prompt = build_prompt(ours, config, text, pictures, chat=False, settings=ImageSettings(size=IMAGE_SIZE))
    assert prompt.tokens == np.asarray(expected["input_ids"])[0].tolist()


def real_template(folder: Path) -> str:
    return json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
