"""The byte tables that are known from publications, planned from headers of full-size checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from compressing import headers_only, plan_recipe

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.families.published import published
from gemma_surgery.surgery.anatomy import logical_matrices

BIG = "gemma-3-4b-it-qat-4bit"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, real_tokenizer: Path) -> Path:
    return headers_only(tmp_path_factory.mktemp("big") / "source", BIG, published(BIG), real_tokenizer)


def test_the_4b_file_has_the_published_tensors_and_bytes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(headers_only(tmp_path / "source", BIG, published(BIG), None))
    assert len(checkpoint.tensors) == 1636
    assert checkpoint.size_bytes == 2_995_133_024
    family = Gemma3(checkpoint.config)
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        part = family.component(tensor.name)
        sizes[part] = sizes.get(part, 0) + tensor.size_bytes
    assert sizes == {
        "embedding": 377_579_520,
        "output head": 377_579_520,
        "text layers": 1_805_597_696,
        "vision tower": 428_475_744,
        "projector": 5_900_544,
    }
    assert family.problems(logical_matrices(checkpoint)) == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gemma-3-270m-it", 268_098_176),
        ("gemma-3-1b-it", 999_885_952),
        ("gemma-3-4b-it", 4_300_079_472),
        ("gemma-3-12b-it", 12_187_325_040),
        ("gemma-3-27b-it", 27_432_406_640),
    ],
)
def test_every_size_has_the_published_parameter_count(tmp_path: Path, name: str, parameters: int) -> None:
    checkpoint = open_checkpoint(headers_only(tmp_path / "source", name, published(name), None))
    assert sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()) == parameters


@pytest.mark.real_tokenizer
def test_mobile_faithful_reproduces_the_published_savings(big: Path) -> None:
    plan = plan_recipe(big, "mobile-faithful", ())
    saved = {step.step: f"{step.saved_bytes / 1e6:.2f}" for step in plan.steps}
    assert saved == {
        "prune_vocabulary": "169.85",
        "pad_vision_mlp": "190.76",
        "drop_layers": "159.32",
        "reduce_resolution": "1.16",
        "prune_neurons": "188.01",
        "split_weights": "0.00",
    }
    assert f"{plan.output_bytes / 2**30:.2f}" == "2.13"
    by_file = {file.name: file.size_bytes for file in plan.files}
    assert f"{by_file['language_model.safetensors'] / 2**30:.1f}" == "1.9"
    assert f"{by_file['vision_model.safetensors'] / 2**20:.0f}" == "231"


@pytest.mark.real_tokenizer
def test_mobile_needs_at_most_1_78_gib(big: Path) -> None:
    plan = plan_recipe(big, "mobile", ())
    assert plan.output_bytes <= 1.78 * 2**30
    assert plan.output_bytes == 1_910_001_088
    assert json.loads(plan.documents["config.json"])["text_config"]["per_layer_intermediate_sizes"] == [
        *[10240] * 14,
        *[7680] * 17,
    ]


@pytest.mark.real_tokenizer
@pytest.mark.parametrize("size", ["270m", "1b", "4b", "12b", "27b"])
@pytest.mark.parametrize("form", ["-4bit", ""])
def test_mobile_fits_every_size_and_layout(
    tmp_path: Path, real_tokenizer: Path, size: str, form: str
) -> None:
    name = f"gemma-3-{size}-it{form}"
    source = headers_only(tmp_path / "source", name, published(name), real_tokenizer)
    plan = plan_recipe(source, "mobile", ("prune_neurons.protect_first=8",))
    ratio = plan.output_bytes / plan.source_bytes
    assert 0.5 < ratio < 0.8 if form else ratio < 0.25
    family = Gemma3(plan.config)
    assert family.problems({planned.tensor.name: planned.tensor for planned in plan.tensors}) == []
