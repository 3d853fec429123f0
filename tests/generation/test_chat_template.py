"""Chat templates: which file is taken, and the text that comes out, recorded from transformers 5.23."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.chat_template import ChatTemplate, find_chat_template, gemma_turns
from gemma_surgery.generation.conversation import check_conversation
from gemma_surgery.generation.tokenizer import Tokenizer

IMAGE = {"type": "image"}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


# Messages, and what `apply_chat_template(..., add_generation_prompt=True)` makes of them.
RECORDED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one turn": (
        [{"role": "user", "content": "  Hello there!\n "}],
        "<bos><start_of_turn>user\nHello there!<end_of_turn>\n<start_of_turn>model\n",
    ),
    "system prompt": (
        [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}],
        "<bos><start_of_turn>user\nBe brief. \n\nHi<end_of_turn>\n<start_of_turn>model\n",
    ),
    "system prompt in parts": (
        [
            {"role": "system", "content": [text_part("Be brief.")]},
            {"role": "user", "content": [text_part("Hi")]},
        ],
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
    ),
    "three turns": (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": " Hello!  "},
            {"role": "user", "content": "Bye <end_of_turn> x"},
        ],
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye <end_of_turn> x<end_of_turn>\n<start_of_turn>model\n",
    ),
    "two images": (
        [
            {
                "role": "user",
                "content": [text_part("Compare "), IMAGE, text_part(" and "), IMAGE, text_part("?")],
            }
        ],
        "<bos><start_of_turn>user\nCompare<start_of_image>and<start_of_image>?<end_of_turn>\n"
        "<start_of_turn>model\n",
    ),
    "images in two turns": (
        [
            {"role": "user", "content": [IMAGE, text_part("One?")]},
            {"role": "assistant", "content": [text_part("A cat.\n")]},
            {"role": "user", "content": [text_part("And"), IMAGE]},
        ],
        "<bos><start_of_turn>user\n<start_of_image>One?<end_of_turn>\n"
        "<start_of_turn>model\nA cat.<end_of_turn>\n"
        "<start_of_turn>user\nAnd<start_of_image><end_of_turn>\n<start_of_turn>model\n",
    ),
}


@pytest.fixture(scope="module")
def published(real_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer)


@pytest.mark.parametrize("name", RECORDED)
def test_the_published_template_writes_what_the_reference_writes(published: Tokenizer, name: str) -> None:
    messages, expected = RECORDED[name]
    assert published.template is not None
    turns = check_conversation(messages)
    assert published.template.render(turns, True, published.special_strings) == expected
    without = published.template.render(turns, False, published.special_strings)
    assert without + "<start_of_turn>model\n" == expected


@pytest.mark.parametrize("name", RECORDED)
def test_a_checkpoint_without_a_template_gets_the_same_text(name: str) -> None:
    messages, expected = RECORDED[name]
    turns = check_conversation(messages)
    assert gemma_turns(turns) == expected
    assert gemma_turns(turns, add_generation_prompt=False) + "<start_of_turn>model\n" == expected


def test_model_is_another_name_for_the_assistant(published: Tokenizer) -> None:
    messages, expected = RECORDED["three turns"]
    renamed = [{**m, "role": m["role"].replace("assistant", "model")} for m in messages]
    assert published.template is not None
    assert published.template.render(check_conversation(renamed), True, published.special_strings) == expected


def test_what_the_template_refuses_is_said_in_its_words(published: Tokenizer) -> None:
    turns = check_conversation([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert published.template is not None
    with pytest.raises(SurgeryError) as caught:
        published.template.render(turns, True, published.special_strings)
    assert str(caught.value) == (
        "[chat template] the template in `tokenizer_config.json` refuses the conversation: "
        "Conversation roles must alternate user/assistant/user/assistant/"
    )
    with pytest.raises(SurgeryError, match="need user and assistant to take turns, got `user` in turn 2"):
        gemma_turns(turns)


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def test_the_jinja_file_comes_before_the_json_files(tmp_path: Path) -> None:
    assert find_chat_template(tmp_path) is None
    for name, content in (
        ("tokenizer_config.json", {"chat_template": "third"}),
        ("chat_template.json", {"chat_template": "second"}),
        ("chat_template.jinja", "first"),
    ):
        write(tmp_path, name, content)
        found = find_chat_template(tmp_path)
        assert found is not None
        assert found.file == name
    assert found.source == "first"


def test_a_file_without_the_key_leaves_it_to_the_next(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.json", {"chat_template": None})
    write(tmp_path, "tokenizer_config.json", {"chat_template": "here"})
    found = find_chat_template(tmp_path)
    assert found is not None
    assert (found.source, found.file) == ("here", "tokenizer_config.json")
    write(tmp_path, "tokenizer_config.json", {})
    assert find_chat_template(tmp_path) is None


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    found = find_chat_template(tmp_path)
    assert found is not None
    assert found.source == "d"
    write(tmp_path, "tokenizer_config.json", {"chat_template": named[:1]})
    with pytest.raises(SurgeryError, match="need a template named `default`, got `tools`"):
        find_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.json", {"chat_template": 5}, "need a string under `chat_template`, got 5"),
        ("chat_template.json", "{", "`chat_template.json` is not valid JSON"),
        ("tokenizer_config.json", {"chat_template": []}, "need a template named `default`, got none"),
        ("tokenizer_config.json", {"chat_template": "a" * (1 << 20) + "b"}, "need at most 1,048,576"),
        ("chat_template.jinja", "a" * (1 << 20) + "b", "need at most 1,048,576 bytes"),
    ],
)
def test_a_broken_template_file_is_one_sentence(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    write(tmp_path, name, content)
    with pytest.raises(SurgeryError) as caught:
        find_chat_template(tmp_path)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_jinja_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"ab\xff")
    with pytest.raises(SurgeryError, match=r"need UTF-8, got byte 0xff at 2 in `chat_template\.jinja`"):
        find_chat_template(tmp_path)


def test_a_template_sees_names_and_plain_messages_only() -> None:
    turns = check_conversation([{"role": "user", "content": [{"type": "image", "image": b"data"}]}])
    template = ChatTemplate("{{ messages }}{{ bos_token }}{{ add_generation_prompt }}{{ x }}", "t")
    text = template.render(turns, False, {"bos_token": "<bos>", "x": 7})
    assert text == "[{'role': 'user', 'content': [{'type': 'image'}]}]<bos>False7"
