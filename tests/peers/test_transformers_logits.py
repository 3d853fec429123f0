"""Float32 logits of every position against transformers, on random weights."""

from __future__ import annotations

import pytest
from comparing import (
    BARE,
    IMAGE,
    assert_equal,
    expected_logits,
    our_logits,
)

from gemma_surgery.models import load_model

LOCAL, GLOBAL = "sliding_attention", "full_attention"
# Beyond the window of 16 by a wide margin, and not a multiple of anything.
LONG = (167,)

TEXT_CASES = {
    "two heads per kv head": {},
    "four heads per kv head": {"num_key_value_heads": 1},
    "one head per kv head": {"num_key_value_heads": 4},
    "heads wider than the model": {"hidden_size": 96, "num_attention_heads": 8, "head_dim": 48},
    "heads narrower than the model": {"hidden_size": 96, "head_dim": 16},
    "scale of another dimension than the head's": {"query_pre_attn_scalar": 7},
    "no rotary scaling": {"rope_scaling": None},
    "other rotary bases": {"rope_theta": 50_000.0, "rope_local_base_freq": 300.0},
    "every second layer global": {"sliding_window_pattern": 2},
    "every layer global": {"sliding_window_pattern": 1},
    "no layer global": {"sliding_window_pattern": 9},
    "layer kinds that follow no pattern": {
        "layer_types": [GLOBAL, LOCAL, LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL]
    },
    "window of one token": {"sliding_window": 1},
    "window as long as the prompt": {"sliding_window": 167},
    "window one shorter than the prompt": {"sliding_window": 166},
    "odd vocabulary and widths": {"vocab_size": 1021, "intermediate_size": 83},
    "larger norm epsilon": {"rms_norm_eps": 1e-5},
    "capped logits": {"final_logit_softcapping": 2.0},
}

IMAGE_CASES = {
    "8 x 8 patches, 4 x 4 tokens": {},
    "6 x 6 patches, 3 x 3 tokens": {"vision": {"image_size": 84}, "top": {"mm_tokens_per_image": 9}},
    "6 x 6 patches, 2 x 2 tokens": {"vision": {"image_size": 84}, "top": {"mm_tokens_per_image": 4}},
    "no pooling": {"vision": {"image_size": 56}},
    "one token per image": {"top": {"mm_tokens_per_image": 1}},
    "border that fills no patch": {"vision": {"image_size": 120}},
    "small patches": {"vision": {"image_size": 35, "patch_size": 5}, "top": {"mm_tokens_per_image": 49}},
    "vision MLP of 16 x 17": {"vision": {"intermediate_size": 16 * 17}},
    "larger vision epsilon": {"vision": {"layer_norm_eps": 1e-5}},
    "image tokens beyond the table": {"top": {"image_token_index": 305}},
}

LAYOUTS = {
    "one image inside text": (9, IMAGE, 33),
    "two images inside text": (5, IMAGE, 11, IMAGE, 7),
    "three images one after the other": (3, IMAGE, IMAGE, IMAGE, 40),
    "image before everything": (BARE, 30),
    "image after everything": (30, BARE),
    "image alone": (BARE,),
    # The window of 16 begins inside the block for tokens 1 to 15 behind it.
    "text that looks back into an image": (1, IMAGE, 15),
}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_text_logits_equal_the_reference(checkpoint, case):
    source = checkpoint(text=TEXT_CASES[case], multimodal=False)
    model = load_model(source.folder)
    assert_equal(our_logits(model, source, LONG), expected_logits(source, LONG), case)


def test_text_logits_of_a_vision_language_model_equal_the_reference(checkpoint):
    source = checkpoint()
    model = load_model(source.folder)
    assert_equal(our_logits(model, source, LONG), expected_logits(source, LONG), "text of a VLM")
    assert not model.vision_loaded


def test_rows_of_a_batch_equal_the_reference(checkpoint):
    source = checkpoint(multimodal=False, text={})
    model = load_model(source.folder)
    assert_equal(our_logits(model, source, LONG, batch=2), expected_logits(source, LONG, batch=2), "two rows")


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 18, 31, 1500])
def test_logits_of_any_prompt_length_equal_the_reference(checkpoint, length):
    source = checkpoint(multimodal=False, text={})
    model = load_model(source.folder)
    assert_equal(our_logits(model, source, (length,)), expected_logits(source, (length,)), f"{length} tokens")


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_image_logits_equal_the_reference(checkpoint, case):
    source = checkpoint(**IMAGE_CASES[case])
    model = load_model(source.folder)
    layout = (9, IMAGE, 33, IMAGE, 6)
    assert_equal(our_logits(model, source, layout), expected_logits(source, layout), case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [5, 16, 24])
def test_logits_around_images_equal_the_reference(checkpoint, layout, window):
    source = checkpoint(text={"sliding_window": window})
    model = load_model(source.folder)
    parts = LAYOUTS[layout]
    what = f"{layout}, window {window}"
    assert_equal(our_logits(model, source, parts), expected_logits(source, parts), what)
