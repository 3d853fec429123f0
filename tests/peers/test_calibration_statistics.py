"""Measured statistics against transformers with forward hooks, in float32 on the same samples."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_models import with_stored_scale
from stored_values import reference_of_file
from transformers import Gemma3ForConditionalGeneration

from gemma_surgery.calibration.measure import Request, make_profile
from gemma_surgery.calibration.passages import Passage, built_in_passages
from gemma_surgery.calibration.profile import Profile, read_profile
from gemma_surgery.calibration.samples import Sample, make_samples
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.demo_model import FORMS, demo_model_path
from gemma_surgery.demo_model.scenes import random_scene, render
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import read_model_config

# Largest difference of any value, as a share of the largest value of the statistic.
TOLERANCE = 1e-4
NUM_TEXTS, MAX_TOKENS = 6, 160

TEXT, VISION = "language_model.model.layers.", "vision_tower.vision_model.encoder.layers."
# Of each part: the linear behind which activations are, those whose inputs are measured, the one of heads.
LINEARS = {
    TEXT: ("mlp.gate_proj", ("mlp.down_proj", "self_attn.o_proj"), "self_attn.o_proj"),
    VISION: ("mlp.fc1", ("mlp.fc2", "self_attn.out_proj"), "self_attn.out_proj"),
}
Inputs = dict[str, list[np.ndarray]]


@dataclass
class Sides:
    """Our profile, and what hooks saw: inputs and outputs by module path, one array `[T, F]` per sample."""

    profile: Profile
    modules: dict[str, torch.nn.Module]
    inputs: Inputs
    outputs: Inputs

    def layers(self) -> list[tuple[str, str]]:
        """Part and prefix of every layer."""
        found = []
        for part in (TEXT, VISION):
            numbers = {int(name.removeprefix(part)) for name in self.inputs if _is_layer(name, part)}
            found += [(part, f"{part}{number}.") for number in sorted(numbers)]
        return found


def _is_layer(name: str, part: str) -> bool:
    return name.startswith(part) and name.removeprefix(part).isdigit()


@pytest.fixture(scope="module", params=FORMS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    try:
        folder = demo_model_path(request.param)
    except SurgeryError as error:
        pytest.skip(f"the trained model is not there: {error}")
    made = tmp_path_factory.mktemp("profile")
    checkpoint = open_checkpoint(folder)
    samples = _samples(checkpoint, made)
    make_profile(checkpoint, samples, made / "profile", Request("0" * 64, hessians=("*",)))
    if request.param == "4bit":
        reference = reference_of_file(folder)[1]
    else:
        reference = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    reference = with_stored_scale(reference)
    modules, inputs, outputs = _watched(reference)
    for sample in samples:
        _run(reference, sample, read_model_config(checkpoint).image_token_id)
    return Sides(read_profile(made / "profile", checkpoint.fingerprint), modules, inputs, outputs)


def _samples(checkpoint: Checkpoint, folder: Path) -> list[Sample]:

    passages = list(built_in_passages()[:NUM_TEXTS])
    for index in range(2):
        path = folder / f"{index}.png"
        render(random_scene(random.Random(index)), 224).save(path)
        passages.append(Passage("image", "Describe the image.", "A circle.", path))
    config = read_model_config(checkpoint)
    return make_samples(passages, Tokenizer.load(checkpoint), config, chat=True, max_tokens=MAX_TOKENS)


def _watched(reference: torch.nn.Module) -> tuple[dict[str, torch.nn.Module], Inputs, Inputs]:
    """Hooks on every layer and every linear in it, by the names of the released files."""
    modules: dict[str, torch.nn.Module] = {}
    inputs: Inputs = defaultdict(list)
    outputs: Inputs = defaultdict(list)

    def watch(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...], result: object) -> None:
            y = result[0] if isinstance(result, tuple) else result
            assert isinstance(y, torch.Tensor)
            for kept, value in ((inputs, given[0]), (outputs, y)):
                kept[name].append(value.reshape(-1, value.shape[-1]).detach().double().numpy())

        return hook

    for name, module in reference.named_modules():
        released = name.removeprefix("model.")
        released = released.replace("language_model.layers.", TEXT, 1)
        if released.startswith("vision_tower.encoder."):
            released = released.replace("vision_tower.", "vision_tower.vision_model.", 1)
        parts = [part for part in (TEXT, VISION) if released.startswith(part)]
        if parts and (isinstance(module, torch.nn.Linear) or _is_layer(released, parts[0])):
            modules[released] = module
            module.register_forward_hook(watch(released))
    return modules, inputs, outputs


def _run(reference: torch.nn.Module, sample: Sample, image_token: int | None) -> None:
    ids = torch.from_numpy(sample.tokens.astype(np.int64))[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if sample.pixels is not None:
        given["pixel_values"] = torch.from_numpy(np.asarray(sample.pixels())).permute(0, 3, 1, 2)
        given["token_type_ids"] = (ids == image_token).long()
    with torch.no_grad():
        reference(**given, use_cache=False)


def assert_near(results: Sequence[tuple[str, np.ndarray, np.ndarray]], what: str) -> None:
    differences = {}
    for name, got, expected in results:
        assert got.shape == expected.shape and np.isfinite(got).all()
        differences[name] = np.abs(got - expected).max() / np.abs(expected).max()
    worst = max(differences, key=differences.__getitem__)
    print(f"{what}: {differences[worst]:.1e} in {worst}")
    assert differences[worst] < TOLERANCE
    assert len(differences) >= 11


def test_activations_equal_those_of_the_reference(sides: Sides) -> None:
    results = []
    for part, prefix in sides.layers():
        gate = torch.from_numpy(np.concatenate(sides.outputs[prefix + LINEARS[part][0]]))
        expected = torch.nn.functional.gelu(gate, approximate="tanh").abs().mean(0).numpy()
        results.append((prefix, sides.profile.activation(f"{prefix}mlp.", len(expected)), expected))
    assert_near(results, "activations")


def test_input_means_equal_those_of_the_reference(sides: Sides) -> None:
    results = []
    for part, prefix in sides.layers():
        for linear in (prefix + name for name in LINEARS[part][1]):
            expected = np.mean([x.mean(axis=0) for x in sides.inputs[linear]], axis=0)
            results.append((linear, sides.profile.input_mean(linear, len(expected)), expected))
    assert_near(results, "input means")


def test_fluctuations_equal_those_of_flaps_loop_over_the_reference(sides: Sides) -> None:
    results = []
    for part, prefix in sides.layers():
        for linear in (prefix + name for name in LINEARS[part][1]):
            mean = fluctuation = np.zeros(sides.inputs[linear][0].shape[1])
            for n, x in enumerate(sides.inputs[linear], start=1):
                mean = mean * (n - 1) / n + x.mean(axis=0) / n
                if n > 1:
                    fluctuation = fluctuation * (n - 2) / (n - 1) + np.square(x - mean).sum(axis=0) / n
            results.append((linear, sides.profile.input_fluctuation(linear, len(mean)), fluctuation))
    assert_near(results, "fluctuations")


def test_block_influence_equals_that_of_the_reference(sides: Sides) -> None:
    results = []
    for _, prefix in sides.layers():
        x = torch.from_numpy(np.concatenate(sides.inputs[prefix[:-1]]))
        y = torch.from_numpy(np.concatenate(sides.outputs[prefix[:-1]]))
        expected = 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1).mean().numpy()
        got = np.asarray(sides.profile.block_influence(prefix))
        results.append((prefix, got, np.asarray(expected)))
    assert_near(results, "block influence")


def test_head_importance_equals_that_of_the_reference(sides: Sides) -> None:
    results = []
    for part, prefix in sides.layers():
        linear = prefix + LINEARS[part][2]
        x = np.concatenate(sides.inputs[linear])
        weight = sides.modules[linear].weight.detach().double().numpy()
        heads = 4 if part == TEXT else sides.modules[prefix[:-1]].self_attn.num_heads
        added = [
            np.square(each @ part.T).sum() / len(x)
            for each, part in zip(np.split(x, heads, 1), np.split(weight, heads, 1), strict=True)
        ]
        got = sides.profile.head_importance(f"{prefix}self_attn.", heads)
        results.append((prefix, got, np.asarray(added)))
    assert_near(results, "head importance")


def test_hessians_equal_those_of_the_reference(sides: Sides) -> None:
    results = []
    for part, prefix in sides.layers():
        for linear in (prefix + name for name in LINEARS[part][1]):
            x = np.concatenate(sides.inputs[linear])
            weights = np.ones(len(x))
            if part == TEXT:
                weights = 1 / np.square(np.concatenate(sides.outputs[linear])).mean(axis=1)
            expected = (x * weights[:, None]).T @ x / weights.sum()
            results.append((linear, sides.profile.hessian(linear, len(expected)), expected))
            # Tokens for the decoder, patches for the tower.
            assert sides.profile.hessian_count(linear) == len(x)
    assert_near(results, "Hessians")


def test_a_gate_without_its_activation_would_be_noticed(sides: Sides) -> None:
    """A negative control: the tolerance is far from what a wrong formula gives."""
    prefix = f"{TEXT}0."
    gate = np.concatenate(sides.outputs[f"{prefix}mlp.gate_proj"])
    wrong = np.maximum(gate, 0).mean(axis=0)
    got = sides.profile.activation(f"{prefix}mlp.", len(wrong))
    assert np.abs(got - wrong).max() / np.abs(wrong).max() > 20 * TOLERANCE
