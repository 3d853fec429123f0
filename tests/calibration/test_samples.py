"""Passages become what the model meets in use: turns of a chat, raw text, images before the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.calibration.samples import CONTINUE, Sample, make_samples
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config

ASKED = Passage("facts", "What shape is red?", "The circle is red.")
GIVEN = Passage("prose", "", "The red circle is left of the blue square and above the green triangle today.")


@pytest.fixture(scope="module")
def tokenizer(dense: Path) -> Tokenizer:
    return Tokenizer.load(open_checkpoint(dense))


@pytest.fixture(scope="module")
def config(dense: Path) -> ModelConfig:
    return read_model_config(open_checkpoint(dense))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture(scope="module")
def make(tokenizer: Tokenizer, config: ModelConfig):
    def one(passage: Passage, *, chat: bool = True, max_tokens: int = 500) -> Sample:
        (sample,) = make_samples([passage], tokenizer, config, chat=chat, max_tokens=max_tokens)
        assert sample.tokens.dtype == np.int32
        return sample

    return one


def test_a_prompt_and_its_text_are_a_users_and_a_models_closed_turn(make, tokenizer, config) -> None:
    sample = make(ASKED)
    prompt = build_prompt(tokenizer, config, ASKED.prompt).tokens
    assert sample.tokens[: sample.answer_start].tolist() == prompt
    answer = sample.tokens[sample.answer_start :].tolist()
    assert answer[:-1] == tokenizer.encode(ASKED.text, special_tokens=False)
    assert tokenizer.token_of(answer[-1]) == "<end_of_turn>"
    assert sample.pixels is None


def test_a_text_alone_is_given_in_part_and_continued(make, tokenizer) -> None:
    sample = make(GIVEN)
    prompt = tokenizer.decode(sample.tokens[: sample.answer_start].tolist())
    answer = tokenizer.decode(sample.tokens[sample.answer_start : -1].tolist())
    given = prompt.split(CONTINUE)[1].split("<end_of_turn>")[0]
    assert f"{given} {answer}" == GIVEN.text
    assert 0.2 < len(given) / len(GIVEN.text) < 0.4


def test_raw_text_follows_the_first_token_as_it_is(make, tokenizer, config) -> None:
    sample = make(GIVEN, chat=False)
    assert sample.answer_start == 1
    plain = tokenizer.encode(GIVEN.text, special_tokens=False)
    assert sample.tokens.tolist() == [config.bos_token_id, *plain]
    both = make(ASKED, chat=False).tokens.tolist()
    joined = f"{ASKED.prompt}\n\n{ASKED.text}"
    assert both == [config.bos_token_id, *tokenizer.encode(joined, special_tokens=False)]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("passage", [ASKED, GIVEN], ids=["prompt and text", "text"])
def test_a_long_sample_is_cut_at_its_end(make, passage, chat) -> None:
    whole = make(passage, chat=chat)
    cut = make(passage, chat=chat, max_tokens=len(whole.tokens) - 3)
    assert cut.tokens.tolist() == whole.tokens[:-3].tolist()
    assert cut.answer_start == whole.answer_start


def test_a_cut_inside_the_prompt_leaves_no_answer(make) -> None:
    sample = make(ASKED, max_tokens=5)
    assert len(sample.tokens) == sample.answer_start == 5


def test_a_prompt_alone_has_no_answer(make, tokenizer, config) -> None:
    sample = make(Passage("user", ASKED.prompt, ""))
    assert sample.tokens.tolist() == build_prompt(tokenizer, config, ASKED.prompt).tokens
    assert sample.answer_start == len(sample.tokens)


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_with_an_image_is_never_cut(make, config, picture, chat) -> None:
    passage = Passage("image", "What is it?", "A red field.", picture)
    whole, cut = make(passage, chat=chat), make(passage, chat=chat, max_tokens=2)
    assert cut.tokens.tolist() == whole.tokens[: whole.answer_start].tolist()
    assert np.count_nonzero(cut.tokens == config.image_token_id) == config.vision.tokens_per_image
    assert len(whole.tokens) > len(cut.tokens) == cut.answer_start
    size = config.vision.image_size
    assert cut.pixels().shape == (1, size, size, 3)


def test_an_image_for_a_text_only_model_is_refused(text_only, picture) -> None:
    checkpoint = open_checkpoint(text_only)
    config, tokenizer = read_model_config(checkpoint), Tokenizer.load(checkpoint)
    passage = Passage("image", "What is it?", "", picture)
    with pytest.raises(SurgeryError, match="need a model with a vision tower for images"):
        make_samples([passage], tokenizer, config, chat=True, max_tokens=50)


def test_nothing_to_encode_is_refused(tokenizer, config) -> None:
    with pytest.raises(SurgeryError, match="need at least one passage, got none"):
        make_samples([], tokenizer, config, chat=True, max_tokens=50)
    with pytest.raises(SurgeryError, match="need at least 2 tokens per sample, got 1"):
        make_samples([ASKED], tokenizer, config, chat=True, max_tokens=1)
