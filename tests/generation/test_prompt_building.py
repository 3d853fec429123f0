"""Prompts: the tokens and pixels that the reference processor makes, recorded from transformers 5.23."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.generation.conversation import check_conversation
from gemma_surgery.generation.images import ImageSettings, image_pixels
from gemma_surgery.generation.pan_and_scan import PanAndScan
from gemma_surgery.generation.prompt import build_prompt, image_spans
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config

BEGIN, END, SOFT = 2046, 2047, 2048
PER_IMAGE = 16
SETTINGS = ImageSettings(size=224)
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def config(tiny: Path) -> ModelConfig:
    return read_model_config(open_checkpoint(tiny))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(open_checkpoint(tiny))


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def block_text(per_image: int = PER_IMAGE) -> str:
    return "\n\n<start_of_image>" + "<image_soft_token>" * per_image + "<end_of_image>\n\n"


def turn(text: str) -> str:
    return f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"


def user(*parts: str | dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def test_a_text_becomes_a_user_turn_with_one_bos(tokenizer: Tokenizer, config: ModelConfig) -> None:
    prompt = build_prompt(tokenizer, config, " The fox ")
    assert prompt.text == turn("The fox")
    assert prompt.tokens == tokenizer.encode(turn("The fox"))
    assert prompt.tokens.count(2) == 1
    assert prompt.pixels is None
    assert prompt.image_spans == ()


def test_without_chat_a_text_is_fed_as_it_is_behind_one_bos(
    tokenizer: Tokenizer, config: ModelConfig
) -> None:
    assert build_prompt(tokenizer, config, " fox\n", chat=False).tokens == [2, *tokenizer.encode(" fox\n")]
    assert build_prompt(tokenizer, config, "<bos>fox", chat=False).tokens == [2, *tokenizer.encode("fox")]


def test_a_template_without_bos_gets_one(tiny_tokenizer: Path, tmp_path: Path, config: ModelConfig) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(tiny_tokenizer / name)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    prompt = build_prompt(Tokenizer.from_folder(tmp_path), config, "fox")
    assert prompt.tokens == [2, *Tokenizer.from_folder(tmp_path).encode("fox!")]


def test_a_system_prompt_comes_first(tokenizer: Tokenizer, config: ModelConfig) -> None:
    assert build_prompt(tokenizer, config, "Hi", system="Be brief.").text == turn("Be brief.\n\nHi")


def test_a_placeholder_becomes_one_block_of_image_tokens(tokenizer: Tokenizer, config: ModelConfig) -> None:
    prompt = build_prompt(tokenizer, config, user("Look", IMAGE, "?"), [picture(1)])
    assert prompt.text == turn("Look<start_of_image>?")
    assert prompt.tokens == tokenizer.encode(turn(f"Look{block_text()}?"))
    ((start, end),) = prompt.image_spans
    assert end - start == PER_IMAGE
    assert prompt.tokens[start - 1] == BEGIN
    assert prompt.tokens[end] == END
    assert prompt.pixels is not None
    assert prompt.pixels.dtype == np.float32
    np.testing.assert_array_equal(prompt.pixels, image_pixels(picture(1), SETTINGS)[None])


@pytest.mark.parametrize(
    "content",
    [
        "What is it?",
        [{"role": "user", "content": "What is it?"}],
        user("What is it?"),
        user(IMAGE, IMAGE, "What is it?"),
        "<start_of_image><start_of_image>What is it?",
    ],
)
def test_images_without_a_place_come_before_the_last_user_text(
    tokenizer: Tokenizer, config: ModelConfig, content: Any
) -> None:
    prompt = build_prompt(tokenizer, config, content, [picture(1), picture(2)])
    assert prompt.tokens == tokenizer.encode(turn(f"{block_text()}{block_text()}What is it?"))
    assert prompt.pixels is not None
    np.testing.assert_array_equal(prompt.pixels[1], image_pixels(picture(2), SETTINGS))


def test_without_chat_images_come_before_the_text(tokenizer: Tokenizer, config: ModelConfig) -> None:
    prompt = build_prompt(tokenizer, config, "Look", [picture(1)], chat=False)
    assert prompt.tokens == [2, *tokenizer.encode(f"{block_text()}Look")]
    placed = build_prompt(tokenizer, config, "Look<start_of_image>", [picture(1)], chat=False)
    assert placed.tokens == [2, *tokenizer.encode(f"Look{block_text()}")]
    only = build_prompt(tokenizer, config, "", [picture(1)], chat=False)
    assert len(only.image_spans) == 1


def test_images_of_several_turns_keep_their_order(tokenizer: Tokenizer, config: ModelConfig) -> None:
    messages = [
        *user({"type": "image", "image": picture(1)}, "One?"),
        {"role": "assistant", "content": "A cat."},
        *user("And", {"type": "image", "image": picture(2)}),
    ]
    prompt = build_prompt(tokenizer, config, messages)
    beside = [
        *user(IMAGE, "One?"),
        {"role": "assistant", "content": "A cat."},
        *user("And", IMAGE),
    ]
    same = build_prompt(tokenizer, config, beside, [picture(1), picture(2)])
    assert prompt.tokens == same.tokens
    assert prompt.pixels is not None
    for index, seed in enumerate((1, 2)):
        np.testing.assert_array_equal(prompt.pixels[index], image_pixels(picture(seed), SETTINGS))
        np.testing.assert_array_equal(prompt.pixels[index], same.pixels[index])


def test_pan_and_scan_adds_the_pieces_and_says_so(tokenizer: Tokenizer, config: ModelConfig) -> None:
    wide, square = picture(1, 900, 300), picture(2, 50, 50)
    prompt = build_prompt(tokenizer, config, user(IMAGE, "and", IMAGE), [wide, square], pan_and_scan=True)
    block = block_text()
    crops = f"Here is the original image {block} and here are some crops to help you see better "
    assert prompt.tokens == tokenizer.encode(turn(f"{crops}{block} {block} {block}and{block}"))
    assert prompt.pixels is not None
    assert prompt.pixels.shape == (5, 224, 224, 3)
    np.testing.assert_array_equal(prompt.pixels[0], image_pixels(wide, SETTINGS))
    np.testing.assert_array_equal(prompt.pixels[2], image_pixels(wide.crop((300, 0, 600, 300)), SETTINGS))
    np.testing.assert_array_equal(prompt.pixels[4], image_pixels(square, SETTINGS))


def test_given_settings_are_used(tokenizer: Tokenizer, config: ModelConfig) -> None:
    settings = ImageSettings(size=224, pan_and_scan=PanAndScan(min_crop_size=10))
    prompt = build_prompt(tokenizer, config, "a", [picture(1, 100, 40)], settings=settings)
    assert len(prompt.image_spans) == 4


def test_generated_tokens_follow_a_prompt_without_changing_it(
    tokenizer: Tokenizer, config: ModelConfig
) -> None:
    prompt = build_prompt(tokenizer, config, "a", [picture(1)])
    longer = prompt.followed_by([5, 6])
    assert longer.tokens == [*prompt.tokens, 5, 6]
    assert longer.pixels is prompt.pixels
    assert longer.image_spans == prompt.image_spans


def test_parts_of_a_system_prompt_are_all_kept(tokenizer: Tokenizer, config: ModelConfig) -> None:
    parts = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]
    messages = [{"role": "system", "content": parts}, *user("Hi")]
    assert build_prompt(tokenizer, config, messages).text == turn("One. Two.\n\nHi")
    # As one text: the published template reads the first part only.
    assert check_conversation(messages)[0].as_message() == {"role": "system", "content": "One. Two."}


def test_a_text_only_model_takes_the_placeholder_as_the_token_it_is(
    tokenizer: Tokenizer, config: ModelConfig
) -> None:
    prompt = build_prompt(tokenizer, replace(config, vision=None), "a<start_of_image>")
    assert prompt.tokens.count(BEGIN) == 1
    assert prompt.image_spans == ()


def test_spans_are_the_runs_of_image_tokens() -> None:
    assert image_spans([], 7) == ()
    assert image_spans([1, 2], 7) == ()
    assert image_spans([7, 7, 1, 7], 7) == ((0, 2), (3, 4))


# Recorded: `Gemma3Processor` with 4 tokens per image of 56 pixels, on the released tokenizer.
RECORDED = {
    ("A <start_of_image> b", False): [2, 236776, 236743, 108, 255999, *[262144] * 4, 256000, 108, 518],
    ("A <start_of_image> b", True): [
        *(2, 236776, 5715, 563, 506, 3303, 2471, 236743, 108, 255999, *[262144] * 4, 256000, 108),
        *(532, 1590, 659, 1070, 20859, 531, 1601, 611, 1460, 2480, 236743, 108, 255999, *[262144] * 4),
        *(256000, 108, 236743, 108, 255999, *[262144] * 4, 256000, 108, 236743, 108, 255999),
        *(*[262144] * 4, 256000, 108, 518),
    ],
}


@pytest.mark.parametrize(("text", "pan_and_scan"), RECORDED)
def test_tokens_are_those_of_the_reference_processor(
    real_tokenizer: Path, config: ModelConfig, text: str, pan_and_scan: bool
) -> None:
    assert config.vision is not None
    released = replace(
        config,
        text=replace(config.text, vocab_size=262208),
        vision=replace(config.vision, image_size=56, tokens_per_image=4),
        boi_token_id=255999,
        eoi_token_id=256000,
        image_token_id=262144,
    )
    prompt = build_prompt(
        Tokenizer.from_folder(real_tokenizer),
        released,
        text,
        [picture(1, 1000, 400)],
        chat=False,
        pan_and_scan=pan_and_scan,
    )
    assert prompt.tokens == RECORDED[text, pan_and_scan]
    assert prompt.pixels is not None
    assert len(prompt.pixels) == len(prompt.image_spans) == (4 if pan_and_scan else 1)
