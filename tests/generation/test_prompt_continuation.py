"""The next turn of a chat: what stays in the cache, and that keep + new tokens are the whole prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.generation.continuation import common_prefix_length, continuation
from gemma_surgery.generation.prompt import Prompt, build_prompt, image_spans
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import read_model_config

IMAGE = 9
END_OF_TURN = 106


def prompt(tokens: list[int], *shades: float) -> Prompt:
    """A prompt whose image tokens are 9s, with one 2 x 2 image of a shade per block."""
    spans = image_spans(tokens, IMAGE)
    pixels = np.stack([np.full((2, 2, 3), shade, np.float32) for shade in shades]) if shades else None
    assert len(spans) == len(shades)
    return Prompt(tokens, pixels, spans)


@pytest.mark.parametrize(
    ("held", "wanted", "length"),
    [
        (prompt([]), prompt([1, 2]), 0),
        (prompt([1, 2]), prompt([1, 2, 3]), 2),
        (prompt([1, 2, 3]), prompt([1, 2]), 2),
        (prompt([1, 2, 3]), prompt([1, 4, 3]), 1),
        (prompt([1, 9, 9, 2], 0.5), prompt([1, 9, 9, 2, 3], 0.5), 4),
        # Another picture under the same tokens.
        (prompt([1, 9, 9, 2], 0.5), prompt([1, 9, 9, 2, 3], 0.25), 1),
        (prompt([1, 9, 2, 9, 3], 0.5, 0.5), prompt([1, 9, 2, 9, 3], 0.5, 0.25), 3),
        # A cut inside a block goes back to its start, in either prompt.
        (prompt([1, 9, 9, 9, 2], 0.5), prompt([1, 9, 9, 3], 0.5), 1),
        (prompt([1, 9, 9, 2], 0.5), prompt([1, 9, 9, 9, 3], 0.5), 1),
        (prompt([1, 9, 9], 0.5), prompt([1, 9, 9, 9], 0.5), 1),
        # A difference before an image does not look at the image.
        (prompt([1, 2, 9], 0.5), prompt([1, 3, 9], 0.25), 1),
        (prompt([1, 9, 9, 2], 0.5), prompt([1, 4]), 1),
    ],
)
def test_the_shared_prefix_holds_whole_images_only(held: Prompt, wanted: Prompt, length: int) -> None:
    assert common_prefix_length(held, wanted) == length
    assert common_prefix_length(wanted, held) == length


def test_at_least_one_token_is_left_to_feed() -> None:
    same = prompt([1, 2, 3])
    keep, rest = continuation(same, same)
    assert (keep, rest.tokens) == (2, [3])
    keep, rest = continuation(same, prompt([1, 2]))
    assert (keep, rest.tokens) == (1, [2])
    # The last token may belong to an image: then the whole image is fed again.
    keep, rest = continuation(prompt([1, 9, 9], 0.5), prompt([1, 9, 9], 0.5))
    assert (keep, rest.tokens, rest.image_spans) == (1, [9, 9], ((0, 2),))
    assert rest.pixels is not None


def test_the_rest_carries_the_pixels_of_its_own_blocks() -> None:
    held = prompt([1, 9, 9, 2], 0.5)
    keep, rest = continuation(held, prompt([1, 9, 9, 2, 3, 9, 9, 4], 0.5, 0.75))
    assert keep == 4
    assert rest.tokens == [3, 9, 9, 4]
    assert rest.image_spans == ((1, 3),)
    assert rest.pixels is not None
    assert rest.pixels.shape == (1, 2, 2, 3)
    assert rest.pixels[0, 0, 0, 0] == 0.75
    keep, rest = continuation(held, prompt([1, 9, 9, 2, 3], 0.5))
    assert (keep, rest.tokens, rest.pixels, rest.image_spans) == (4, [3], None, ())


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Text and images, with a few values only, so that prefixes are often shared."""
    pieces = draw(
        st.lists(st.one_of(st.sampled_from([[1], [2]]), st.sampled_from([[9, 9, 3], [9, 3]])), max_size=8)
    )
    tokens = [token for piece in pieces for token in piece]
    shades = [draw(st.sampled_from([0.0, 1.0])) for _ in image_spans(tokens, IMAGE)]
    return prompt([*tokens, 5], *shades)


@settings(max_examples=200, deadline=None)
@given(held=prompts(), wanted=prompts())
def test_what_is_kept_is_equal_and_nothing_is_lost(held: Prompt, wanted: Prompt) -> None:
    keep, rest = continuation(held, wanted)
    assert 0 <= keep < len(wanted.tokens)
    assert held.tokens[:keep] == wanted.tokens[:keep]
    assert wanted.tokens[keep:] == rest.tokens
    for part in (held, wanted):
        assert not any(start < keep < end for start, end in part.image_spans)
    kept = sum(end <= keep for _, end in wanted.image_spans)
    count = 0 if wanted.pixels is None else len(wanted.pixels)
    assert (0 if rest.pixels is None else len(rest.pixels)) == count - kept == len(rest.image_spans)
    assert rest.image_spans == image_spans(rest.tokens, IMAGE)
    for index in range(kept):
        assert held.pixels is not None and wanted.pixels is not None
        np.testing.assert_array_equal(held.pixels[index], wanted.pixels[index])
    # Nothing more could be kept: the next token differs, is the last, or belongs to an image.
    if keep < min(len(held.tokens), len(wanted.tokens) - 1):
        inside = [span for part in (held, wanted) for span in part.image_spans if span[0] == keep]
        assert held.tokens[keep] != wanted.tokens[keep] or inside


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(open_checkpoint(tiny))


def test_turns_extend_a_cache_when_the_answer_tokenises_as_it_was_chosen(
    tiny: Path, tokenizer: Tokenizer
) -> None:
    config = read_model_config(open_checkpoint(tiny))
    messages: list[dict[str, str]] = [{"role": "user", "content": "What is red?"}]
    held = build_prompt(tokenizer, config, messages)
    for answer, question in (("The circle.", "And blue?"), ("The square\nis.", "I see.")):
        held = held.followed_by([*tokenizer.encode(answer), END_OF_TURN])
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        wanted = build_prompt(tokenizer, config, messages)
        keep, rest = continuation(held, wanted)
        assert keep == len(held.tokens)
        follow = f"\n<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
        assert rest.tokens == tokenizer.encode(follow)
        held = wanted


def test_an_answer_that_tokenises_otherwise_is_fed_again_from_the_first_difference(
    tiny: Path, tokenizer: Tokenizer
) -> None:
    config = read_model_config(open_checkpoint(tiny))
    first = build_prompt(tokenizer, config, "What is red?")
    # The model spelled "fox" in bytes; written as text it becomes ordinary tokens.
    spelled = [tokenizer.id_of(f"<0x{byte:02X}>") or 0 for byte in b"fox"]
    held = first.followed_by([*tokenizer.encode("The"), *spelled, END_OF_TURN])
    answer = tokenizer.decode([*tokenizer.encode("The"), *spelled])
    messages = [
        {"role": "user", "content": "What is red?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Why?"},
    ]
    wanted = build_prompt(tokenizer, config, messages)
    keep, rest = continuation(held, wanted)
    assert len(first.tokens) <= keep <= len(first.tokens) + len(tokenizer.encode("The"))
    assert held.tokens[:keep] + rest.tokens == wanted.tokens
