"""Whole models: prompts, generated tokens, prompts with an image. llama.cpp and mlx-lm: see peers.md."""

from __future__ import annotations

import pytest
from models import MODELS, subject
from work import OURS, Work

from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.measurement.traffic import kv_bytes_per_token, weight_bytes_per_token
from gemma_surgery.measurement.workload import Workload, workload_prompt

PROMPT_TOKENS = 512
# Little before it: keys and values are then a small part of what a token reads.
DEPTH = 64
GENERATED, QUICK_GENERATED = 32, 8

models = pytest.mark.parametrize("name", MODELS)


@models
def test_decode(measure, quick, request, name):
    model, tokenizer = _model(name, request)
    count = QUICK_GENERATED if quick else GENERATED
    prompt = workload_prompt(model, tokenizer, Workload(DEPTH, count + 1))
    kv_bytes = kv_bytes_per_token(model, len(prompt.tokens), count + 1)

    def started():
        steps = _steps(model, tokenizer, prompt, count + 1)
        next(steps)
        return (steps,), {}

    work = Work("decode", name, size_bytes=weight_bytes_per_token(model) + round(kv_bytes))
    measure(work, OURS, list, calls=count, setup=started)


@models
def test_prefill(measure, request, name):
    model, tokenizer = _model(name, request)
    prompt = workload_prompt(model, tokenizer, Workload(PROMPT_TOKENS, 2))
    work = Work("prefill", name, operations=PROMPT_TOKENS * operations_per_token(model.config.text))
    measure(work, OURS, lambda: list(_steps(model, tokenizer, prompt, 1)))


@models
def test_image_prompt(measure, request, name):
    model, tokenizer = _model(name, request)
    prompt = workload_prompt(model, tokenizer, Workload(16, 2, num_images=1))
    measure(Work("image prompt", name), OURS, lambda: list(_steps(model, tokenizer, prompt, 1)))


def operations_per_token(text) -> int:
    """Products and sums of the decoder's matrices for one token."""
    attention = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim * text.hidden_size
    mlp = sum(3 * width * text.hidden_size for width in text.mlp_widths)
    return 2 * (attention * text.num_layers + mlp)


def _model(name, request):
    chosen = subject(name, request.config)
    return chosen.model, chosen.tokenizer


def _steps(model, tokenizer, prompt, count):
    return stream_generate(model, tokenizer, prompt, max_tokens=count, eos_token_ids=())
