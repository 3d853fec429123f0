"""Bytes per token against sums over what lies in the files."""

from __future__ import annotations

import math
from pathlib import Path

import independent
import mlx.core as mx
import pytest

from gemma_surgery.measurement.traffic import kv_bytes_per_token, weight_bytes_per_token
from gemma_surgery.models import load_model


def expected_weight_bytes(folder: Path) -> int:
    """As stored, but norms in float32."""
    tensors = {
        name: raw
        for name, raw in independent.read_all(folder).items()
        if name.startswith("language_model.") and not name.endswith("token_map")
    }
    has_head = any(name.startswith("language_model.lm_head") for name in tensors)
    total = 0
    for name, raw in tensors.items():
        count = math.prod(raw.shape)
        size = count * (4 if raw.dtype == "U32" or "norm" in name else 2)
        if "embed_tokens" in name:
            row = size // raw.shape[0]
            size = row if has_head else size + row
        total += size
    return total


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("kind", ["tiny", "tiny_dense", "compressed"])
def test_weight_bytes_are_those_of_the_text_tensors(kind, dtype, request) -> None:
    folder = request.getfixturevalue(kind)
    model = load_model(folder, dtype=dtype)
    assert weight_bytes_per_token(model) == expected_weight_bytes(folder)


def test_a_duplicate_head_is_read_and_the_embedding_is_not(tiny, compressed) -> None:
    model = load_model(tiny)
    embedding = sum(array.nbytes for array in model.vocabulary.table.parameters().values())
    assert model.vocabulary.head is not None
    assert weight_bytes_per_token(model) < model.text_bytes - 0.9 * embedding
    tied = load_model(compressed)
    assert tied.vocabulary.head is None and weight_bytes_per_token(tied) > tied.text_bytes


def test_kv_bytes_are_what_each_pass_sees(tiny) -> None:
    model = load_model(tiny)
    prompt_tokens, generation_tokens = 60, 12
    text = independent.config(tiny)["text_config"]
    per_token = 2 * text["num_key_value_heads"] * text["head_dim"] * model.dtype.size
    cache = model.make_cache()
    tokens = mx.ones((1, prompt_tokens), mx.int32)
    model.forward(model.embed(tokens), cache)
    seen = []
    for _ in range(generation_tokens - 1):
        model.forward(model.embed(tokens[:, :1]), cache)
        seen.append(sum(min(layer.offset, layer.window or layer.offset) * per_token for layer in cache))
    # The window of 64 is passed on the way.
    assert len(set(seen)) == len(seen) and cache[0].window == 64
    mean = sum(seen) / len(seen)
    assert kv_bytes_per_token(model, prompt_tokens, generation_tokens) == pytest.approx(mean)
