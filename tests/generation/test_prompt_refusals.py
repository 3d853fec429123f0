"""Prompts that cannot be built: one clear sentence each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config

SOFT = 2048
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def config(tiny: Path) -> ModelConfig:
    return read_model_config(open_checkpoint(tiny))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(open_checkpoint(tiny))


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (60, 40), (shade, 0, 0))


def user(*parts: str | dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("content", ["", " \n", [], user(""), user(" "), [{"role": "user", "content": []}]])
def test_an_empty_prompt_is_refused(tokenizer: Tokenizer, config: ModelConfig, content: Any) -> None:
    with pytest.raises(SurgeryError, match=r"^\[prompt\] need (a prompt|at least one message), got"):
        build_prompt(tokenizer, config, content)


def test_an_empty_raw_prompt_is_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    with pytest.raises(SurgeryError, match="need a prompt, got an empty one"):
        build_prompt(tokenizer, config, "", chat=False)


@pytest.mark.parametrize(
    ("content", "num_images", "message"),
    [
        ("see <start_of_image>", 0, "got 0 images for 1 place"),
        ("see <start_of_image>", 2, "got 2 images for 1 place"),
        (user(IMAGE, IMAGE, "a"), 1, "got 1 image for 2 places"),
        (user(IMAGE, "a <start_of_image>"), 1, "got 1 image for 2 places"),
        ("a <image_soft_token> b", 0, "got the image token `<image_soft_token>` itself"),
        (user(IMAGE, "<image_soft_token>"), 1, "got the image token `<image_soft_token>` itself"),
    ],
)
def test_images_and_places_that_differ_are_refused(
    tokenizer: Tokenizer, config: ModelConfig, content: Any, num_images: int, message: str
) -> None:
    with pytest.raises(SurgeryError) as caught:
        build_prompt(tokenizer, config, content, [picture(k) for k in range(num_images)])
    assert message in str(caught.value)


def test_images_inside_and_beside_the_messages_are_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    with pytest.raises(SurgeryError, match="got 1 inside and 1 beside"):
        build_prompt(tokenizer, config, user({"type": "image", "image": picture(1)}, "a"), [picture(1)])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "a"}], "got `tool` in message 1"),
        ([{"content": "a"}], "got nothing in message 1"),
        ([{"role": ["user"], "content": "a"}], "got a `list` in message 1"),
        (["hello"], "got a `str` as message 1"),
        ([{"role": "user"}], "got nothing in message 1"),
        ([{"role": "user", "content": 5}], "got a `int` in message 1"),
        ([{"role": "user", "content": ["a"]}], "got a `str` in message 1"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "got `audio` in message 1"),
        ([{"role": "user", "content": [{"type": "text"}]}], "need a string as `text`, got nothing"),
        (user({"type": "image", "image": b"", "path": "b"}), "need one local image"),
        (user({"type": "image", "url": "https://example.com/a.png"}), "need one local image"),
        ([*user("a"), {"role": "system", "content": "b"}], "need the system prompt first and once"),
        ([{"role": "system", "content": [IMAGE]}, *user("a")], "got an image"),
        ([{"role": "system", "content": "a"}], "got a system prompt alone"),
        ([*user("a"), *user("b")], "need user and assistant to take turns"),
    ],
)
def test_a_malformed_conversation_is_refused(
    tokenizer: Tokenizer, config: ModelConfig, messages: Any, message: str
) -> None:
    with pytest.raises(SurgeryError) as caught:
        build_prompt(tokenizer, config, messages)
    assert message in str(caught.value)


def test_a_second_system_prompt_is_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    messages = [{"role": "system", "content": "a"}, *user("b")]
    with pytest.raises(SurgeryError, match="got one in message 2"):
        build_prompt(tokenizer, config, messages, system="c")


def test_chat_only_options_are_refused_without_chat(tokenizer: Tokenizer, config: ModelConfig) -> None:
    with pytest.raises(SurgeryError, match="got messages"):
        build_prompt(tokenizer, config, user("a"), chat=False)
    with pytest.raises(SurgeryError, match="need a chat template for a system prompt"):
        build_prompt(tokenizer, config, "a", chat=False, system="b")


def test_an_image_for_a_text_only_model_is_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    text_only = replace(config, vision=None)
    with pytest.raises(
        SurgeryError, match="need a model with a vision tower for images, got a text-only one"
    ):
        build_prompt(tokenizer, text_only, "What is it?", [picture(1)])
    with pytest.raises(SurgeryError, match="need a model with a vision tower"):
        build_prompt(tokenizer, text_only, "What is it?", [picture(1)], chat=False)


def test_a_token_beyond_the_embedding_is_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    # As `<image_soft_token>` is for the text-only releases.
    short = replace(config, vision=None, text=replace(config.text, vocab_size=SOFT))
    with pytest.raises(SurgeryError, match=r"below 2,048, got `<image_soft_token>` \(2,048\) in the prompt"):
        build_prompt(tokenizer, short, "a<image_soft_token>", chat=False)


def test_a_config_that_names_no_image_tokens_is_refused(tokenizer: Tokenizer, config: ModelConfig) -> None:
    with pytest.raises(SurgeryError, match=r"need the image tokens that `config\.json` names"):
        build_prompt(tokenizer, replace(config, boi_token_id=None), "a", [picture(1)])
    with pytest.raises(SurgeryError, match=r"need the image tokens that `config\.json` names"):
        build_prompt(tokenizer, replace(config, image_token_id=999_999), "a", [picture(1)])
